"""Compare ways in which threads wait: Score-CAM with threads that spin or sleep, alone and beside a busy process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated

import torch
import typer

from benchmarks.measure import SkippedError
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.results import ROOT, Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit import ScoreCAM

ALONE, BESIDE = "alone", "beside a busy process"
SPIN, SLEEP, ONE = "torch's own: spin, then sleep", "OMP_WAIT_POLICY=passive: sleep", "one thread"
FIRST = f"{SPIN}, {ALONE}"

_BUSY = "while True: pass"
_CHILD = "from benchmarks.waiting import child; child({threads}, {channels}, {side})"
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that determine the number of threads and how they wait."""


def run(
    rounds: Rounds = 7,
    channels: Annotated[int, typer.Option(help="number of channels that Score-CAM masks", min=1)] = 64,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Measure whether waiting threads should spin or sleep, alone and beside a busy process."""
    side = 224
    if quick:
        rounds, channels, side = 1, 2, 64
    settings = {"seed": SEED, "rounds": rounds, "channels": channels}
    rows = attempt({"situation": "all"}, partial(waiting_rows, rounds, threads, channels, side))
    record("waiting", "cpu", rows, threads=threads, out=out, quick=quick, **settings)


def waiting_rows(rounds: int, threads: int, channels: int, side: int) -> Iterator[Row]:
    """Yield a row for every way to wait in both situations, relative to spinning threads without load.

    A process decides once how its threads wait, so each way has a separate process; the processes work in turn.
    """
    if not hasattr(signal, "SIGSTOP"):
        raise SkippedError("this system cannot stop and continue processes")
    ways: dict[str, tuple[int, Mapping[str, str]]] = {
        SPIN: (threads, {}),
        SLEEP: (threads, {"OMP_WAIT_POLICY": "passive"}),
        ONE: (1, {}),
    }
    seconds: dict[tuple[str, str], list[float]] = {(where, way): [] for where in (ALONE, BESIDE) for way in ways}
    with ExitStack() as stack:
        workers = {
            way: stack.enter_context(_process(_CHILD.format(threads=own, channels=channels, side=side), more))
            for way, (own, more) in ways.items()
        }
        for worker in workers.values():
            _answer(worker)  # wait until the worker has loaded everything and has run once
        neighbor = stack.enter_context(_process(_BUSY, {}))
        for _ in range(rounds):
            for where, wanted in ((ALONE, signal.SIGSTOP), (BESIDE, signal.SIGCONT)):
                neighbor.send_signal(wanted)
                for way, worker in workers.items():
                    seconds[where, way].append(_asked(worker))
    for (where, way), times in seconds.items():
        ratio = Figure.of(mine / first for mine, first in zip(times, seconds[ALONE, SPIN], strict=True))
        name = f"{way}, {where}"
        case = {"situation": where, "waiting": way}
        yield Row(case, {"seconds": Figure.of(times), "ratio": ratio}, beside="" if name == FIRST else FIRST)


@contextmanager
def _process(code: str, more: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**kept, **more},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _asked(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return float(_answer(worker))


def _answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SkippedError(f"a process ended with status {worker.wait()}")
    return line


def child(threads: int, channels: int, side: int) -> None:
    """Run Score-CAM once, and then once for each line of the standard input; print the seconds of each later call."""
    torch.set_num_threads(threads)
    cam = ScoreCAM(build_model("resnet18", "cpu"), "layer4", channels=channels, batch_size=32)
    images = build_images(1, "cpu", side=side)
    cam(images)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        cam(images)
        print(time.perf_counter() - start, flush=True)

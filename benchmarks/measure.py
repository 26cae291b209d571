"""Measure on noisy machines: time by interleaving alternatives in one process, memory in fresh processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import Figure
from gradcam_kit.meter import PACKED

Work = Callable[[], Any]
"""A callable whose time, operations or memory are measured."""

_STATUS = Path("/proc/self/status")


@dataclass
class Run:
    """The measurements of one work.

    Attributes:
        times: seconds of each round; one value for a long work, none for a skipped one.
        flops: floating-point operations of matrix products, convolutions and attention in one call.
        result: what the first call returned.
        skipped: why the work was not measured; empty if it was.
    """

    times: list[float] = field(default_factory=list)
    flops: int = 0
    result: Any = None
    skipped: str = ""

    @property
    def seconds(self) -> Figure:
        """The seconds of one call."""
        return Figure.of(self.times)

    def over(self, other: Run) -> Figure:
        """Return the time divided by that of another work, round by round, so that drift of the machine cancels."""
        return Figure.of(mine / theirs for mine, theirs in zip(self.times, other.times, strict=False))

    def passes(self, other: Run) -> Figure:
        """Return the floating-point operations divided by those of another work; counts have no spread."""
        share = self.flops / other.flops if other.flops else float("nan")
        return Figure(share, share, share)


def interleave(
    works: Mapping[str, Work], rounds: int, limit: float = float("inf"), long: float = float("inf")
) -> dict[str, Run]:
    """Run every work once per round, and synchronize the device before and after.

    The first call of each work allocates memory, selects kernels and counts operations, and is not timed. The clock is
    that of `torch.utils.benchmark`; its `Timer` is not used, because it would finish one work before starting the next.

    Args:
        works: the compared works by name.
        rounds: how often each work is timed.
        limit: time limit in seconds for the first call of a work; a longer work is skipped.
        long: a work that takes more than this many seconds is timed only once; callers must note this in their rows.
    """
    runs = {name: _first_call(work, limit) for name, work in works.items()}
    for number in range(rounds):
        for name, run in runs.items():
            if run.skipped or (number and run.times[0] > long):
                continue
            try:
                run.times.append(_seconds(works[name]))
            except Exception as error:
                runs[name] = Run(skipped=reason(error))
    return runs


def _first_call(work: Work, limit: float) -> Run:
    try:
        with within(limit), FlopCounterMode(display=False, custom_mapping=PACKED) as counter:
            result = work()
        return Run(flops=counter.get_total_flops(), result=result)
    except Exception as error:  # a case that fails must not end the suite
        return Run(skipped=reason(error))


def _seconds(work: Work) -> float:
    start = timer()  # `timer` synchronizes the device
    work()
    return timer() - start


class SkippedError(Exception):
    """Raised if a case cannot be measured; the message says why."""


class within(TorchDispatchMode):  # noqa: N801, reads as `with within(seconds)`
    """Context manager that raises an error at the first operation after this many seconds of processor time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = seconds
        self.end = time.thread_time() + seconds

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.thread_time() > self.end:
            raise SkippedError(f"takes more than {self.seconds:g} s a call; --limit raises the limit")
        return function(*args, **(kwargs or {}))


def reason(error: BaseException) -> str:
    """Return why a case was skipped, in one line."""
    first = str(error).partition("\n")[0][:200]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return f"too little memory: {first}"
    return first if isinstance(error, SkippedError | ImportError) else f"{type(error).__name__}: {first}"


@contextmanager
def memory_bounded() -> Iterator[None]:
    """Limit the memory of the process, so that an allocation that does not fit raises an error and does not kill it."""
    try:
        import resource
    except ImportError:  # for example on Windows
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and not torch.cuda.is_available():  # a CUDA context reserves more than it uses
        available = int(_found(r"MemAvailable:\s+(\d+)", meminfo)) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") * 1024 + available, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def peak_growth(device: str, build: Callable[..., Work], *arguments: Any) -> Figure:
    """Return the MiB by which one call of a work raises the peak memory.

    On the CPU, the peak is that of a fresh process, read from its own high-water mark, because `ru_maxrss` would start
    at the peak of the parent. Large blocks are mapped separately, so that freed blocks are returned to the system;
    otherwise the result would vary by up to a fifth with the layout of the heap. On a GPU, the peak is that of the
    allocator.

    Args:
        device: "cpu" or "cuda".
        build: function at the top level of a module that prepares and returns the work.
        arguments: arguments of the function.

    Raises:
        OSError: this system has no /proc.
        MemoryError: the process was killed.
        SkippedError: the work failed; the message says why.
    """
    if device == "cuda":
        return _peak_on_device(build(*arguments))
    peak_mb()  # fail here without /proc, because an error of the fresh process would arrive as text
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch", "torchvision"])
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send_peak, args=(sender, torch.get_num_threads(), build, arguments))
    with _large_blocks_mapped():
        process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError as error:
        raise MemoryError("the process was killed while it was measured") from error
    finally:
        process.join()
        receiver.close()
    if isinstance(answer, str):
        raise SkippedError(answer)
    return Figure(answer, answer, answer)


@contextmanager
def _large_blocks_mapped() -> Iterator[None]:
    """Make glibc map blocks of 64 KiB or more separately in a fork server that starts inside this context."""
    name, before = "MALLOC_MMAP_THRESHOLD_", os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ[name] = str(2**16)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _send_peak(sender: Connection, threads: int, build: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(threads)
        work = build(*arguments)
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which building the work may have raised
        before = peak_mb()
        kept = work()
        sender.send(peak_mb() - before)
        del kept
    except Exception as error:
        sender.send(reason(error))


def _peak_on_device(work: Work) -> Figure:
    work()  # a warm-up, in which libraries allocate memory that they keep
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = work()
    torch.cuda.synchronize()
    growth = (torch.cuda.max_memory_allocated() - before) / 2**20
    del kept
    return Figure(growth, growth, growth)


def peak_mb() -> float:
    """Return the peak memory of this process so far, in MiB.

    Raises:
        OSError: this system has no /proc.
    """
    if not _STATUS.exists():
        raise OSError("peak memory is read from /proc, which this system lacks")
    return _status("VmHWM") / 1024


def _status(entry: str) -> int:
    """Return an entry of the process status, in KiB."""
    return int(_found(rf"{entry}:\s+(\d+)", _STATUS))


def _found(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text())
    assert match, f"no {pattern} in {path}"
    return match[1]


def import_seconds(module: str, rounds: int) -> Figure:
    """Return the seconds that importing a module takes, each time in a fresh process."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    return Figure.of(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)
    )

"""Measuring on noisy machines: alternatives interleaved in one process, memory in fresh processes."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How one piece of work compares with the baseline of the same round.

    Attributes:
        seconds: median of the work.
        ratio: median of work / baseline, round by round.
        low: lower quartile of the ratio.
        high: upper quartile of the ratio.
    """

    seconds: float
    ratio: float
    low: float
    high: float


def interleave(works: Mapping[str, Work], rounds: int, baseline: str) -> dict[str, Ratio]:
    """Run every work once per round and compare each with the baseline of its round: drift of the machine cancels."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()  # the first call allocates memory and picks kernels
    for _ in range(rounds):
        for name, work in works.items():
            _wait()
            start = time.perf_counter()
            work()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    results = {}
    for name, times in seconds.items():
        ratios = sorted(mine / theirs for mine, theirs in zip(times, seconds[baseline], strict=True))
        quarter = len(ratios) // 4
        middle = statistics.median(ratios)
        results[name] = Ratio(statistics.median(times), middle, ratios[quarter], ratios[-1 - quarter])
    return results


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_growth(work: str) -> float:
    """Megabytes by which the peak memory of a fresh process grows during some work.

    Args:
        work: "module:function"; the function prepares and returns the work, a callable without arguments.
    """
    module, _, function = work.partition(":")
    code = (
        "import importlib, re\n"
        "from pathlib import Path\n"
        f"work = getattr(importlib.import_module({module!r}), {function!r})()\n"
        # The high-water mark of this process alone: `ru_maxrss` would start at that of its parent.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before = peak(); work(); print(peak() - before)"
    )
    return float(_in_fresh_process(code))


def import_seconds(module: str, rounds: int) -> float:
    """Median time that `import module` takes in a fresh process."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return statistics.median(float(_in_fresh_process(code)) for _ in range(rounds))


def _in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def environment() -> dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def as_json(value: object) -> str:
    """Readable JSON of results."""
    return json.dumps(value, indent=1, default=lambda record: record.__dict__) + "\n"

"""Measuring on noisy machines: alternatives interleaved in one process, medians of ratios, memory in fresh processes."""

from __future__ import annotations

import json
import platform
import resource
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
    """How one piece of work compares with another: medians in seconds, and the median of the paired ratios."""

    seconds: float
    baseline_seconds: float
    ratio: float
    low: float
    high: float


def interleave(works: Mapping[str, Work], repeats: int, baseline: str) -> dict[str, Ratio]:
    """Run each work in turn, `repeats` times over, and compare each round with the baseline of the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()  # the first call allocates and picks kernels
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    results = {}
    for name, times in seconds.items():
        ratios = sorted(mine / theirs for mine, theirs in zip(times, seconds[baseline], strict=True))
        results[name] = Ratio(
            seconds=statistics.median(times),
            baseline_seconds=statistics.median(seconds[baseline]),
            ratio=statistics.median(ratios),
            low=ratios[len(ratios) // 4],
            high=ratios[-1 - len(ratios) // 4],
        )
    return results


def peak_growth(statement: str) -> float:
    """Megabytes by which the peak memory of a fresh process grows during `statement`.

    `statement` is a Python expression naming a function without arguments that prepares its work and returns it, for
    example `"benchmarks.foundation:forward"`.
    """
    module, _, function = statement.partition(":")
    code = (
        "import importlib, json, resource, sys\n"
        f"work = getattr(importlib.import_module({module!r}), {function!r})()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); work(); print(json.dumps(peak() - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kilobytes: float = json.loads(done.stdout.splitlines()[-1])
    return kilobytes / 1024


def environment() -> dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "memory_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }

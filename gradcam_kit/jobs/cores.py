"""Count the CPU cores that this process may use, often fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use, given its CPU affinity and the CPU quota of its container.

    A quota of 1.5 cores counts as 2 cores, because the second one can be used half of the time.

    Returns:
        The number of cores, at least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """Return the smallest CPU quota of this process's control groups, in cores; None = no quota.

    Args:
        groups: the folder where control groups of version 1 or 2 are mounted.
        own: the file that names the groups of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _quotas(groups, path)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(groups / "cpu", path)
    return min(quotas, default=None)


def _quotas(root: Path, path: str) -> Iterator[float]:
    """Yield the CPU quotas of a control group and its parents, up to the root, which may be a container's group."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        quota = _quota(folder)
        if quota is not None:
            yield quota
        if folder == root:
            return


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # the group does not exist, or it lacks this controller
        return None

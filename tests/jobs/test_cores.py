"""How many cores a process may use, from control groups as files say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcam_kit.jobs import cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    groups, own = tmp_path / "fs", tmp_path / "cgroup"
    own.write_text("0::/pod/job\n")
    assert cores.cpu_quota(groups, own) is None
    write(groups / "pod/job/cpu.max", "max 100000\n")
    assert cores.cpu_quota(groups, own) is None
    write(groups / "pod/cpu.max", "150000 100000\n")
    assert cores.cpu_quota(groups, own) == 1.5
    write(groups / "cpu.max", "50000 100000\n")
    assert cores.cpu_quota(groups, own) == 0.5


def test_version_1_is_read_as_well(tmp_path: Path) -> None:
    groups, own = tmp_path / "fs", tmp_path / "cgroup"
    own.write_text("7:memory:/job\n4:cpu,cpuacct:/job\n")
    write(groups / "cpu/job/cpu.cfs_quota_us", "-1\n")
    write(groups / "cpu/job/cpu.cfs_period_us", "100000\n")
    assert cores.cpu_quota(groups, own) is None
    write(groups / "cpu/cpu.cfs_quota_us", "400000\n")
    write(groups / "cpu/cpu.cfs_period_us", "100000\n")
    assert cores.cpu_quota(groups, own) == 4


def test_files_that_say_nothing_are_no_quota(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    assert cores.cpu_quota(tmp_path, own) is None
    own.write_text("0::/\n")
    write(tmp_path / "cpu.max", "nonsense\n")
    assert cores.cpu_quota(tmp_path, own) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (0.5, 1), (1.5, 2), (2.0, 2), (64.0, 4)])
def test_a_quota_is_rounded_up_and_never_adds_cores(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.usable_cores() == expected

"""What is timed beside plain passes leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from benchmarks.capabilities import CAPABILITIES, Capability, capability_rows


def test_writers_are_closed_and_their_folders_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = list(capability_rows("writers", CAPABILITIES["writers"], 1))
    assert len(rows) == 3
    assert all(row.figures["seconds"].median > 0 for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_closed_too() -> None:
    closed: list[bool] = []
    broken = Capability("", {"broken": lambda: 1 / 0}, lambda: closed.append(True))
    with pytest.raises(ZeroDivisionError):
        list(capability_rows("broken", lambda: broken, 1))
    assert closed == [True]

"""Runs of the models in `disk.py`, and what they leave."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from gradcam_kit.jobs import RunRequest, RunSummary, run


def explain(source: str = "pictures", out: str = "out", console: Console | None = None, **options: Any) -> RunSummary:
    defaults = {"model": "shop:net", "workers": 2, "shard_size": 2, "report": False}
    return run(RunRequest(**{**defaults, "source": source, "out": out, **options}), console)


def content(out: str) -> dict[str, bytes]:
    """All files of a run, by name."""
    root = Path(out)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def notes() -> Console:
    return Console(record=True, file=io.StringIO(), width=500)

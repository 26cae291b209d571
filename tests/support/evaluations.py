"""Runs of the demo model on its own pictures, what is measured of them, and what commands say about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from commands import cli
from PIL import Image

from gradcam_kit.demo import sample_pictures


def write_samples(count: int = 3) -> None:
    Path("pictures").mkdir()
    for i, sample in enumerate(sample_pictures()[:count]):
        Image.fromarray(sample.picture).save(f"pictures/{i}.png")


def run_demo(out: str, *more: str) -> tuple[int, str, str]:
    options = ("--workers", "1", "--shard-size", "2", "--overlays", "none", "--targets", "top:2", "--no-report")
    return cli("run", "pictures", "--model", "demo", "--out", out, *options, *more)


def asking(*names: str) -> list[str]:
    return [word for name in names for word in ("--metric", name)]


def table_of(said: str) -> list[list[str]]:
    """The cells of a table on the terminal, head first."""
    lines = [line for line in said.splitlines() if line.startswith(("┃", "│", "|"))]
    return [[cell.strip() for cell in re.split("[┃│|]", line)[1:-1]] for line in lines]


def rows_of(folder: str) -> list[dict[str, Any]]:
    return [row for path in sorted(Path(folder).iterdir()) for row in pq.read_table(path).to_pylist()]


def report_of(folder: str) -> str:
    cli("report", folder)
    return Path(f"{folder}/report.html").read_text()

"""Results of benchmarks as JSON: rows of figures with their spread, and everything that they depend on."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "grad-cam", "torchcam", "captum", "quantus")


@dataclass(frozen=True)
class Figure:
    """A measured number: median and quartiles of its repetitions, all equal if it was measured once.

    Of fewer than four repetitions, `low` and `high` are the smallest and the largest value.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Return the median and quartiles of repetitions, or the extremes of fewer than four repetitions."""
        ordered = sorted(values)
        quarter = len(ordered) // 4
        return cls(statistics.median(ordered), ordered[quarter], ordered[-1 - quarter])

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({digits(self.low)} to {digits(self.high)})"
        return f"{digits(self.median)}{spread}"


@dataclass(frozen=True)
class Row:
    """One case of a benchmark.

    Attributes:
        case: what was measured; distinguishes the row from all others of the file.
        figures: name -> figure, such as `seconds` (of one call), `ratio` (to the work in `beside`), `passes`
            (floating-point operations divided by those of a plain forward pass), or `peak_mb` (growth of peak memory).
        beside: the work to which `ratio` is relative; empty for this work itself and without a ratio.
        skipped: why there are no figures; empty if there are figures.
        note: a remark on the figures for readers.
    """

    case: Mapping[str, str | int]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    beside: str = ""
    skipped: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        """The case in one line."""
        return ", ".join(str(value) for value in self.case.values())


@dataclass(frozen=True)
class Results:
    """The rows of one command, and what they depend on."""

    command: str
    environment: Mapping[str, Any]
    rows: Sequence[Row]

    def where(self, **case: str | int) -> list[Row]:
        """Return the rows with figures whose case has these values."""
        return [row for row in self.rows if row.figures and case.items() <= row.case.items()]

    def finish(self, out: Path | None) -> None:
        """Print the rows and, if requested, write them."""
        console().print(self.table())
        if out:
            self.save(out)
            console().print(f"written to {out}")

    def save(self, out: Path) -> None:
        """Write the rows atomically, so that a reader sees the old or the new file even after an interruption."""
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f"{out.name}.new")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        beside.replace(out)

    def table(self) -> Table:
        """Return a table of all rows, with a column for each figure that occurs in any of them."""
        cases = names_in(row.case for row in self.rows)
        figures = names_in(row.figures for row in self.rows)
        table = Table(*cases, *figures, "compared with", "remark")
        for row in self.rows:
            cells = [str(row.case.get(name, "")) for name in cases]
            values = [str(row.figures[name]) if name in row.figures else "" for name in figures]
            table.add_row(*cells, *values, row.beside, f"skipped: {row.skipped}" if row.skipped else row.note)
        return table


def load(path: Path) -> Results:
    """Return results from a file that `Results.save` wrote.

    Raises:
        ValueError: the file does not hold results.
    """
    stored = json.loads(path.read_text())
    if not {"command", "environment", "rows"} <= set(stored):
        raise ValueError(f"{path} does not hold rows of a benchmark")
    rows = [
        Row(**{**row, "figures": {name: Figure(**figure) for name, figure in row["figures"].items()}})
        for row in stored["rows"]
    ]
    return Results(stored["command"], stored["environment"], rows)


def file_of(command: str, device: str) -> Path:
    """Return the path of a command's stored results."""
    return RESULTS / f"{command}-{device}.json"


def environment(device: str, **settings: Any) -> dict[str, Any]:
    """Return what a figure depends on besides its case: hardware, versions, commit, and the command's settings."""
    return {
        "processor": _processor(),
        "cores": len(_usable_cores()),
        "memory_gb": _memory_gb(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        **settings,
    }


def digits(value: float) -> str:
    """Return a number with three significant digits, or more for large numbers."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_json(value: object) -> str:
    """Return records as readable JSON."""
    return json.dumps(value, indent=1, default=lambda record: record.__dict__) + "\n"


def names_in(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """Return all keys of the mappings, in the order of their first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def console() -> Console:
    """Return the console for tables, with markup off, because rich would drop the brackets of `.[peers]`."""
    return Console(width=None if Console().is_terminal else 180, markup=False)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> Sequence[int]:
    import os

    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _memory_gb() -> float | None:
    meminfo = Path("/proc/meminfo")
    return round(int(meminfo.read_text().split()[1]) / 2**20, 1) if meminfo.exists() else None


def _commit() -> str | None:
    """Return the checked-out commit, with a plus if the code of package or benchmarks differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "gradcam_kit", "benchmarks/*.py") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None

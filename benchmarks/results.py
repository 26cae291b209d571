"""What a benchmark leaves: rows of figures with their spread, and all that they depend on, as JSON."""

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
    """A measured number: median and quartiles of its repetitions, all equal where it was measured once."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Median and quartiles."""
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
        case: what was measured; tells the row from all others of the file.
        figures: name -> figure. `seconds` of one call, `ratio` to the baseline that the command names, `passes`:
            floating point operations / those of a plain forward pass, `peak_mb`: growth of the peak memory, ...
        beside: what `ratio` is measured beside; empty where there is none.
        skipped: why there are no figures; empty where there are.
        note: what a reader has to know of the figures.
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
    """The rows of one command and what they depend on."""

    command: str
    environment: Mapping[str, Any]
    rows: Sequence[Row]

    def where(self, **case: str | int) -> list[Row]:
        """The measured rows of these cases."""
        return [row for row in self.rows if row.figures and case.items() <= row.case.items()]

    def finish(self, out: Path | None) -> None:
        """Print the rows and, if wanted, write them."""
        console().print(self.table())
        if out:
            self.save(out)
            console().print(f"written to {out}")

    def save(self, out: Path) -> None:
        """Write the rows; a reader meets the file as it was or as it is, whenever this is interrupted."""
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f"{out.name}.new")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        beside.replace(out)

    def table(self) -> Table:
        """All rows, a column for each figure that any of them has."""
        cases = names_in(row.case for row in self.rows)
        figures = names_in(row.figures for row in self.rows)
        table = Table(*cases, *figures, "beside", "remark")
        for row in self.rows:
            cells = [str(row.case.get(name, "")) for name in cases]
            values = [str(row.figures[name]) if name in row.figures else "" for name in figures]
            table.add_row(*cells, *values, row.beside, f"skipped: {row.skipped}" if row.skipped else row.note)
        return table


def load(path: Path) -> Results:
    """Read what `Results.finish` wrote.

    Raises:
        ValueError: the file holds something else.
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
    """Where the results of a command are stored."""
    return RESULTS / f"{command}-{device}.json"


def environment(device: str, **settings: Any) -> dict[str, Any]:
    """What a figure depends on besides its case: hardware, versions, commit, and the command's settings."""
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
    """Three digits that count, and more of what is large."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_json(value: object) -> str:
    """Readable JSON of records."""
    return json.dumps(value, indent=1, default=lambda record: record.__dict__) + "\n"


def names_in(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """Every key of any of them, in order of appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def console() -> Console:
    """Where tables are printed, brackets as they are: rich would take the extra of a package for markup."""
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
    """The commit that is checked out, with a plus where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "gradcam_kit", "benchmarks/*.py") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None

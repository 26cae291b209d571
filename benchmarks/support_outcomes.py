"""Outcomes of `python -m benchmarks support` for each architecture, and the file that holds them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import as_json, environment
from benchmarks.support_cases import LIBRARIES

IMAGES = 2
"""Number of images that are explained for each architecture."""


@dataclass(frozen=True)
class Outcome:
    """The outcome for one architecture.

    Attributes:
        name: library and architecture, such as "torchvision:resnet18".
        family: task of the architecture; for timm, the source file.
        status: "ok": finite maps that vary, without side effects; "refused": an error of this package; "failed": any
            other problem; "left out": the model is too large, cannot be built, or fails without an explanation, too.
        layer: the automatic layer, with the `shape` of its map for images of `size`.
        parameters: number of parameters of the model.
        finite: whether all values of the maps are finite.
        varies: whether no map is constant.
        traceless: whether hooks, modes, flags, gradients, buffers and the random state were the same afterwards.
        seconds: time of the explanation, without building the model.
        reason: reason for a status other than "ok".
    """

    name: str
    family: str
    status: str
    reason: str = ""
    layer: str = ""
    shape: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    parameters: int = 0
    finite: bool = False
    varies: bool = False
    traceless: bool = False
    seconds: float = 0.0


def load(file: Path) -> dict[str, Outcome]:
    """Return name -> outcome for the rows of a file; empty if it does not exist."""
    if not file.exists():
        return {}
    found = {}
    for row in json.loads(file.read_text())["architectures"]:
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        found[row["name"]] = Outcome(**values)
    return found


def save(outcomes: Iterable[Outcome], file: Path) -> None:
    """Merge outcomes into a JSON file with one architecture per line; rows of other architectures are kept."""
    found = {**load(file), **{one.name: one for one in outcomes}}
    rows = sorted(found.values(), key=lambda one: (LIBRARIES.index(one.name.partition(":")[0]), one.family, one.name))
    head = as_json({"environment": hardware(), "summary": summarize(rows)}).removesuffix("\n}\n")
    lines = ",\n".join("  " + json.dumps(asdict(one)) for one in rows)
    file.write_text(f'{head},\n "architectures": [\n{lines}\n ]\n}}\n')


def summarize(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Count the architectures by status, in one group for timm and in one group per task for every other library."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        library = outcome.name.partition(":")[0]
        group = library if library == "timm" else f"{library} {outcome.family}"
        counts.setdefault(group, Counter())[outcome.status] += 1
    return {group: dict(statuses) for group, statuses in counts.items()}


def hardware() -> dict[str, object]:
    """Return what the outcomes depend on besides the code."""
    loaded = {library: sys.modules[library].__version__ for library in LIBRARIES if library in sys.modules}
    return {**environment("cpu"), "images": IMAGES, **loaded}

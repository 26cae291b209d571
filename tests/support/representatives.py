"""Which of many methods a test of the pass runs with; pytest runs the others with `-m exhaustive`.

A pass depends on what a method needs, on the layers it chooses and on the target it explains, not on its formula. So
whatever tests the pass (traces, threads, wrappers, precision, inputs) asks one method of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any

import pytest

from gradcam_kit import METHODS
from gradcam_kit.types import Evidence

ON_CLASSES = [name for name in METHODS if Evidence.DETECTIONS not in METHODS[name].needs]
"""The methods that explain classes; the others explain detections."""


def kind_of(name: str) -> Hashable:
    """Return all that a pass depends on in a method."""
    method = METHODS[name]
    return method.needs, method.layer_choice, method.target_type


def representatives(names: Iterable[str] = ON_CLASSES, kind: Callable[[str], Hashable] = kind_of) -> list[str]:
    """Return the first name of each kind."""
    first: dict[Hashable, str] = {}
    for name in names:
        first.setdefault(kind(name), name)
    return list(first.values())


def each(
    cases: Iterable[Any] = ON_CLASSES, also: Collection[str] = (), kind: Callable[[str], Hashable] = kind_of
) -> Any:
    """Mark the cases of all but the representatives; a case is a name, or a tuple that begins with a name."""
    listed = [case if isinstance(case, tuple) else (case,) for case in cases]
    run = {*representatives((name for name, *_ in listed), kind), *also}
    return [pytest.param(*case, marks=_marks(case[0] in run)) for case in listed]


def crossed(
    names: Iterable[str],
    values: Iterable[Any],
    first: Collection[str] | None = None,
    whole: Collection[str] = ("grad-cam",),
    kind: Callable[[str], Hashable] = kind_of,
) -> Any:
    """Mark the pairs of names and values that add little.

    The names in `first` (the representatives) run with the first value, and those in `whole` with every value.
    """
    listed, options = list(names), list(values)
    short = representatives(listed, kind) if first is None else first
    return [
        pytest.param(name, *_tuple(value), marks=_marks(name in whole or (name in short and place == 0)))
        for name in listed
        for place, value in enumerate(options)
    ]


def others(cases: Iterable[tuple[Any, ...]]) -> Any:
    """Mark cases that other cases stand for together."""
    return [pytest.param(*case, marks=_marks(False)) for case in cases]


def _tuple(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple) else (value,)


def _marks(runs: bool) -> Any:
    return () if runs else pytest.mark.exhaustive

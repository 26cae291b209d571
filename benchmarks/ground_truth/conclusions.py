"""The conclusions of docs/where-right.md, each made from the stored numbers that support it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.ground_truth.bootstrap import Pair
from benchmarks.ground_truth.stored import Asked, Stored

TRANSFORMERS = ("transformer", "transformer, two", "transformer, ignored", "transformer, mean", "transformer, windows")
_SIZES = ("small", "medium", "large")


def linear_head(s: Stored) -> str:
    """Behind mean pooling and a linear head."""
    for column in (*_SIZES, "two objects", "GridPG"):
        same = abs(s.value(column, "grad-cam") - s.value(column, "hires-cam"))
        s.require(same < 0.01, f"{column}: grad-cam and hires-cam differ by {same}")
    beyond = [s.better(column, "grad-cam", "random") for column in _SIZES]
    return (
        "**Behind mean pooling and a linear head**, take `GradCAM`; `HiResCAM`, `XGradCAM` and `CAM` are the same "
        f"there. Beyond random maps it puts {beyond[0]} of its map on small, {beyond[1]} on medium and {beyond[2]} on "
        "large objects."
    )


CONCLUSIONS: tuple[Callable[[Stored], str], ...] = (linear_head,)


def pairs() -> tuple[Pair, ...]:
    """All pairs that a sentence asks for."""
    asked = Asked()
    for conclusion in CONCLUSIONS:
        conclusion(asked)
    return tuple(asked.pairs)


def text(results: Mapping[str, Any]) -> str:
    """The conclusions as a list.

    Raises:
        UnsupportedError: the numbers do not support one of them.
    """
    return "\n".join(f"- {conclusion(Stored(results))}" for conclusion in CONCLUSIONS)

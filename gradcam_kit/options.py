"""Checks of options that many classes share, and names that lead to what is registered under them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypeVar

from gradcam_kit.errors import OptionError, UnknownNameError, did_you_mean

_T = TypeVar("_T")


class Registry(dict[str, _T]):
    """A dict that says what it holds, and which names are near to one that it does not hold."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __missing__(self, name: object) -> _T:
        hint = did_you_mean(str(name), self) or f"; known are {', '.join(self)}"
        raise UnknownNameError(f"there is no {self.what} {name!r}{hint}")


def one_of(option: str, value: Any, known: Sequence[str]) -> Any:
    """Return `value`, or raise OptionError with the known values."""
    if value not in known:
        raise OptionError(
            f"{option} is {value!r}; expected {', '.join(map(repr, known))}{did_you_mean(str(value), known)}"
        )
    return value


def positive_int(option: str, value: Any) -> int:
    """Return `value` as an int of at least 1, or raise OptionError."""
    try:
        number = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise OptionError(f"{option} is {value!r}; expected a positive int")
    return number


def non_negative(option: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0, or raise OptionError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise OptionError(f"{option} is {value!r}; expected a finite number of at least 0")
    return number

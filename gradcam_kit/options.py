"""Checks of option values, and a registry that suggests names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from operator import index
from typing import Any, TypeVar

from gradcam_kit.errors import OptionError, UnknownNameError, did_you_mean

_T = TypeVar("_T")


class Registry(dict[str, _T]):
    """A dict that raises UnknownNameError for an unknown key, with similar names or else all names."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __missing__(self, name: object) -> _T:
        wanted = _letters(str(name))
        same = [repr(own) for own in self if wanted in (_letters(own), _letters(own).replace("++", "plusplus"))]
        hint = f"; in gradcam_kit: {' or '.join(same)}" if same else did_you_mean(str(name), self)
        hint = hint or f"; known are {', '.join(self)}"
        raise UnknownNameError(f"there is no {self.what} {name!r}{hint}")


def _letters(name: str) -> str:
    """Return a name without case and separators, so that `GradCAM` and `grad-cam` are the same."""
    return name.lower().replace("-", "").replace("_", "")


def one_of(
    option: str, value: Any, known: Sequence[str], error: type[OptionError | UnknownNameError] = OptionError
) -> Any:
    """Return `value`, or raise `error` if it is not one of the known values."""
    if value not in known:
        raise error(f"{option} is {value!r}; expected {', '.join(map(repr, known))}{did_you_mean(str(value), known)}")
    return value


def whole(option: str, value: Any, kind: str = "an int") -> int:
    """Return `value` as an int, or raise OptionError."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return index(value)
    raise OptionError(f"{option} is {value!r}; expected {kind}")


def positive_int(option: str, value: Any) -> int:
    """Return `value` as an int of at least 1, or raise OptionError."""
    kind = "a positive int"
    if (number := whole(option, value, kind)) < 1:
        raise OptionError(f"{option} is {value!r}; expected {kind}")
    return number


def finite_number(option: str, value: Any, kind: str = "a finite number") -> float:
    """Return `value` as a finite float, or raise OptionError."""
    with suppress(TypeError, ValueError):
        if isfinite(number := float(value)):
            return number
    raise OptionError(f"{option} is {value!r}; expected {kind}")


def non_negative(option: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0, or raise OptionError."""
    kind = "a finite number of at least 0"
    if (number := finite_number(option, value, kind)) < 0:
        raise OptionError(f"{option} is {value!r}; expected {kind}")
    return number


def positive(option: str, value: Any) -> float:
    """Return `value` as a finite float above 0, or raise OptionError."""
    kind = "a finite number above 0"
    if (number := finite_number(option, value, kind)) <= 0:
        raise OptionError(f"{option} is {value!r}; expected {kind}")
    return number

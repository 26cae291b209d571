"""Read class names from various containers, compare them leniently, and use them as targets."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from operator import index as as_index
from typing import Any

import numpy as np
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, UnknownNameError, did_you_mean, kind_of

_EXPECTED = "expected one name for each class, in the order of the outputs, such as ['cat', 'dog']"
BLANKS = " \t\r\n\v\f\u00a0\ufeff"
"""Characters to strip from a name, including the byte order mark U+FEFF."""


def normalized(name: str) -> str:
    """Return a name normalized for comparison: NFC, without surrounding blanks and byte order marks."""
    return unicodedata.normalize("NFC", name).strip(BLANKS)


def read_class_names(value: Any, what: str = "class_names") -> tuple[str, ...]:
    """Return class names from a sequence, an array, or a mapping from index to name or from name to index.

    Args:
        value: the given class names.
        what: the name of the value in messages.

    Raises:
        InputError: the value has another type, or an entry is neither text nor an integer.
        OptionError: the indices of a mapping are not 0, 1, 2, ...
    """
    if isinstance(value, Mapping):
        value = _in_order(value, what)
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, str | bytes | set | frozenset) or not isinstance(value, Iterable):
        raise InputError(f"{what} is {kind_of(value)}; {_EXPECTED}")
    return tuple(_name(entry, place, what) for place, entry in enumerate(value))


def _name(entry: Any, place: int, what: str) -> str:
    if isinstance(entry, str):
        return str(entry)  # a plain str, even for NumPy's strings
    if isinstance(entry, float) and math.isnan(entry):
        raise InputError(f"{what}[{place}] is NaN, an empty cell of a table; {_EXPECTED}")
    try:
        if not isinstance(entry, bool):
            return str(as_index(entry))
    except TypeError:
        pass
    raise InputError(f"{what}[{place}] is {kind_of(entry)}; {_EXPECTED}")


def _in_order(names: Mapping[Any, Any], what: str) -> list[Any]:
    """Return the names of a mapping: index to name, as in configurations, or name to index, as in data sets."""
    by_index = names
    if names and all(isinstance(key, str) and not key.isdecimal() for key in names):
        by_index = {index: name for name, index in names.items()}
    try:
        found = {int(key) if isinstance(key, str) else as_index(key): name for key, name in by_index.items()}
    except (TypeError, ValueError):
        raise InputError(f"{what} is {kind_of(names)} without indices of classes; {_EXPECTED}") from None
    if sorted(found) != list(range(len(names))):
        raise OptionError(
            f"{what} has the indices {', '.join(map(str, sorted(found)[:5]))}, ...; expected 0 to {len(names) - 1}"
        )
    return [found[index] for index in range(len(found))]


def carried_names(model: object) -> tuple[str, ...] | None:
    """Return a model's `class_names`, or else the names in `config.id2label` unless they are placeholders (LABEL_0)."""
    names = getattr(model, "class_names", None)
    if names is not None:
        return read_class_names(names, f"{type(model).__name__}.class_names") or None
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(labels, Mapping) or not labels:
        return None
    try:
        found = read_class_names(labels, "config.id2label")
    except (InputError, OptionError):
        return None
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(found)) else found


def class_index(name: str, names: Sequence[str]) -> int:
    """Return the index of the class with this name, which may be one of several names ("tench, Tinca tinca").

    Raises:
        UnknownNameError: no class has this name, or several classes have it.
    """
    wanted = normalized(name)
    for matches in (
        lambda one: one == name,
        lambda one: normalized(one) == wanted,
        lambda one: wanted in map(normalized, one.split(",")),
    ):
        found = [place for place, one in enumerate(names) if matches(one)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(
                f"{name!r} is the name of {len(found)} classes, {' and '.join(map(str, found[:5]))}; give "
                "the index of one"
            )
    raise UnknownNameError(
        f"there is no class {name!r} among the model's {len(names)} classes{did_you_mean(name, names)}"
    )


def has_names(targets: Any) -> bool:
    """Whether targets are class names, or a sequence or array that contains some."""
    if isinstance(targets, str):
        return True
    if isinstance(targets, np.ndarray):
        return targets.dtype.kind in "UO" and has_names(targets.tolist())
    return isinstance(targets, list | tuple) and any(has_names(entry) for entry in targets)


def named_targets(targets: Any, names: Sequence[str] | None) -> Any:
    """Return targets with class names replaced by indices; targets without class names are returned unchanged.

    Raises:
        UnknownNameError: see `class_index`.
    """
    if names is None or not has_names(targets):
        return targets
    if isinstance(targets, str):
        return class_index(targets, names)
    entries = targets.tolist() if isinstance(targets, np.ndarray) else targets
    return [named_targets(entry, names) for entry in entries]

"""Find the weights of a model in a checkpoint: under which keys and with which prefix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradcam_kit.errors import CheckpointError

_NESTS = ("", "state_dict", "model_state_dict", "model")
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PLAIN = _WRAPPERS | {"model", "net", "network"}
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged|shadow)|(ema|swa|averaged|shadow)([._]|$)", re.IGNORECASE)
_DEEPEST = 4  # maximum depth of nested mappings
_SHOWN = 3


@dataclass(frozen=True)
class _Reading:
    """One way to read a checkpoint.

    Attributes:
        keys: keys that lead to the state dict, joined by dots.
        prefix: prefix of the model's names in the file.
        names: the model's names, mapped to the names in the file.
        values: all values of the state dict, by their names in the file.
    """

    keys: str
    prefix: str
    names: Mapping[str, str]
    values: Mapping[str, Any]

    @property
    def rank(self) -> int:
        """The rank of keys and prefix: 0 = common for models, 1 = others, 2 = those of averaged weights."""
        if _AVERAGED.search(self.keys) or _AVERAGED.search(self.prefix):
            return 2
        parts = {part for part in self.prefix.split(".") if part}
        return 0 if self.keys in _NESTS and parts <= _PLAIN else 1

    @property
    def place(self) -> str:
        """The place of the weights in the file, described for messages."""
        below = [f"under {self.keys!r}"] if self.keys else []
        return " ".join([*below, *([f"with the prefix {self.prefix!r}"] if self.prefix else [])]) or "without a prefix"

    def holds(self, own: Mapping[str, Any]) -> bool:
        """Whether the reading has all names of a model."""
        return len(self.names) == len(own)

    def fits(self, own: Mapping[str, Any]) -> bool:
        """Whether the reading has all names of a model, with the shapes that the model has."""
        return self.holds(own) and all(
            not isinstance(value, Tensor)
            or is_lazy(value)
            or getattr(self.values[self.names[name]], "shape", None) == value.shape
            for name, value in own.items()
        )

    def equals(self, other: _Reading) -> bool:
        """Whether another reading gives the same values."""
        pairs = ((self.values[place], other.values[other.names[name]]) for name, place in self.names.items())
        return all(isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b) for a, b in pairs)


def chosen_state(
    content: Any,
    own: Mapping[str, Any],
    path: Path,
    understood: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a model's weights from the content of a file, under the model's names, and notes on the rest.

    Args:
        content: content of the file.
        own: the state dict of the model.
        path: the file, for errors.
        understood: the model's own conversion of other names; it returns None for names that it cannot convert.

    Raises:
        CheckpointError: the file holds no weights, weights whose names do not fit, or several sets of weights that fit
            equally well.
    """
    found = list(_state_dicts(content))
    if not found:
        kinds = f"keys {few(list(map(str, content)))}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} holds no state dict (found {kinds or 'nothing'}); save model.state_dict()")
    readings = [reading for keys, values in found for reading in _readings(keys, values, own)]
    fitting = [one for one in readings if one.fits(own)] or [one for one in readings if one.holds(own)]
    if not fitting:
        if (former := _former(readings, own, understood)) is not None:
            missing = [name for name in own if name not in former[0].names]
            return former[1], (
                f"{path.name} lacks {few(missing)}, which the model's modules convert from former names or initialize",
            )
        raise CheckpointError(f"{path} does not fit the model: {_misfit(found, readings, own)}")
    best = min(one.rank for one in fitting)
    first, *others = [one for one in fitting if one.rank == best]
    rivals = [one for one in others if not one.equals(first)]
    if rivals:
        places = " and ".join(one.place for one in [first, *rivals[:2]])
        raise CheckpointError(
            f"{path} holds several sets of weights that fit the model, {places}; save only one of them, "
            "for example by torch.save(model.state_dict(), 'weights.pth')"
        )
    copies = [one for one in fitting if one is not first]
    notes = _left_out(first, copies, own, path)
    return {name: first.values[place] for name, place in first.names.items()}, notes


def _former(
    readings: Sequence[_Reading],
    own: Mapping[str, Any],
    understood: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
) -> tuple[_Reading, dict[str, Any]] | None:
    """Return the closest reading with its weights as the model converts them; None if the model refuses it.

    If several readings are equally close, the result is None too, because nothing tells which one is right.
    """
    ranked = sorted(readings, key=lambda one: (one.rank, -len(one.names)))
    if not ranked:
        return None
    one = ranked[0]
    near = [two for two in ranked if (two.rank, len(two.names)) == (one.rank, len(one.names))]
    if any((two.keys, two.names) != (one.keys, one.names) for two in near):
        return None
    used = {*one.names.values()}
    given = {name.removeprefix(one.prefix): value for name, value in one.values.items() if name not in used}
    given = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    given |= {name: one.values[place] for name, place in one.names.items()}
    found = understood(given)
    return None if found is None else (one, {name: given.get(name, found[name]) for name in own})


def _state_dicts(content: Any, keys: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the mappings in a file that hold tensors, the outer ones first, with the keys that lead to them."""
    if not isinstance(content, Mapping):
        return
    values = {name: value for name, value in content.items() if isinstance(name, str)}
    if any(isinstance(value, Tensor) for value in values.values()):
        yield keys, values
    if depth < _DEEPEST:
        for name, value in values.items():
            yield from _state_dicts(value, f"{keys}.{name}" if keys else name, depth + 1)


def _readings(keys: str, values: Mapping[str, Any], own: Mapping[str, Any]) -> list[_Reading]:
    """Return the ways to find names of a model in a state dict, the best first."""
    plain = _by_prefix(keys, values, {name: name for name in values}, own)
    if any(one.holds(own) for one in plain):
        return plain
    unwrapped = {name: _without_wrappers(name, own) for name in values}
    if len(set(unwrapped.values())) < len(unwrapped):
        return plain
    return sorted([*plain, *_by_prefix(keys, values, unwrapped, own)], key=lambda one: -len(one.names))


def _by_prefix(
    keys: str, values: Mapping[str, Any], called: Mapping[str, str], own: Mapping[str, Any]
) -> list[_Reading]:
    counts: Counter[str] = Counter()
    for name in called.values():
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in own)
    places = {name: place for place, name in called.items()}
    return [
        _Reading(keys, prefix, {name: places[prefix + name] for name in own if prefix + name in places}, values)
        for prefix, _ in sorted(counts.items(), key=lambda pair: (-pair[1], len(pair[0])))
    ]


def _without_wrappers(name: str, own: Mapping[str, Any]) -> str:
    """Return a name without the parts that DataParallel, torch.compile and other wrappers insert."""
    if name in own:
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _left_out(first: _Reading, copies: Sequence[_Reading], own: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return notes on unused parts of a file.

    Raises:
        CheckpointError: the file has names with the prefix of the model that the model does not have.
    """
    used = {*first.names.values(), *(place for one in copies for place in one.names.values() if one.keys == first.keys)}
    rest = [name for name, value in first.values.items() if name not in used and isinstance(value, Tensor)]
    inside = [name for name in rest if name.startswith(first.prefix)]
    if inside:
        shown = few([name.removeprefix(first.prefix) for name in inside])
        raise CheckpointError(f"{path} does not fit the model: unexpected {shown}")
    notes = [f"left out of {path.name}, for lack of the prefix {first.prefix!r}: {few(rest)}"] if rest else []
    others = [one for one in copies if not one.equals(first)]
    notes += [f"{path.name} holds another set of weights {one.place}, which was left out" for one in others[:_SHOWN]]
    return tuple(notes)


def _misfit(found: Sequence[tuple[str, dict[str, Any]]], readings: Sequence[_Reading], own: Mapping[str, Any]) -> str:
    """Describe how the names and shapes of the closest reading differ from those of the model."""
    nearest = max(readings, key=lambda one: (len(one.names), -one.rank), default=None)
    if nearest is None:
        keys, values = max(found, key=lambda pair: sum(isinstance(value, Tensor) for value in pair[1].values()))
        nearest = _Reading(keys, "", {}, values)
    missing = [name for name in own if name not in nearest.names]
    used = {*nearest.names.values()}
    spare = [name for name, value in nearest.values.items() if name not in used and isinstance(value, Tensor)]
    unexpected = [name.removeprefix(nearest.prefix) for name in spare if name.startswith(nearest.prefix)]
    said = [f"missing {few(missing)}"] + ([f"unexpected {few(unexpected)}"] if unexpected else [])
    where = f" (read {nearest.place})" if nearest.prefix or nearest.keys else ""
    return "; ".join(said) + where


def few(names: Iterable[str]) -> str:
    """Join the first few names, with the number of the other names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

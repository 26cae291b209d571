"""Find out what an unknown operation does to places, by calling it again with other values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.capture.provenance.places import CONSTANT, Places, compressed

_EXACT = {torch.float32: 2**24, torch.float64: 2**53}
"""For each dtype, the number up to which every integer is represented exactly."""
_ROUNDING = 1e-4
_SEED = 0


def probed(
    call: Callable[[Mapping[str, Any]], list[Tensor]],
    values: Mapping[str, Any],
    known: Mapping[int, Tensor],
    outputs: list[Tensor],
    places: Places,
) -> list[Tensor | None]:
    """Return the row numbers of the results of an unknown operation, or None for a result of unknown origin.

    An operation that only moves values also moves integers, which then tell where each result came from. An operation
    that works position by position changes its results only where an argument was changed.

    Args:
        call: function that runs the operation with other arguments and returns its results.
        values: the operation's arguments by name.
        known: `id(tensor)` -> row numbers, for the arguments that depend on an input.
        outputs: the operation's results.
        places: the table to which the row numbers refer.
    """
    sources = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and id(leaf) in known}
    if not all(leaf.is_floating_point() for leaf in [*sources.values(), *outputs]):
        return [None] * len(outputs)
    found: list[Tensor | None] = [None] * len(outputs)
    for key, source in sources.items():
        if len(sources) == 1 and source.numel() + 1 < _EXACT.get(source.dtype, 0):
            found = list(_followed(call, values, source, known[key], outputs))
        for place, own in enumerate(_kept(call, values, source, known[key], outputs) if None in found else ()):
            if own is not None:
                before = found[place]
                found[place] = own if before is None else places.narrower(before, own)
    return found


def _with(values: Mapping[str, Any], source: Tensor, instead: Tensor) -> Mapping[str, Any]:
    return {key: tree_map(lambda leaf: instead if leaf is source else leaf, value) for key, value in values.items()}


def _followed(
    call: Callable[[Mapping[str, Any]], list[Tensor]],
    values: Mapping[str, Any],
    source: Tensor,
    ids: Tensor,
    outputs: list[Tensor],
) -> Iterator[Tensor | None]:
    """Yield the row numbers of results that consist of moved values of the source and zeros; None for other results."""
    numbers = torch.arange(1, source.numel() + 1, device=source.device, dtype=source.dtype).view(source.shape)
    flat = torch.cat([source.new_zeros(1), source.flatten()])
    numbered = torch.cat([ids.new_full((1,), CONSTANT), ids.expand(source.shape).flatten()])
    for before, moved in zip(outputs, call(_with(values, source, numbers)), strict=True):
        if moved.shape != before.shape or not bool(((moved >= 0) & (moved < len(flat))).all()):
            yield None
            continue
        index = moved.long()
        is_moved = bool((index == moved).all()) and torch.equal(flat[index].nan_to_num(), before.nan_to_num())
        yield compressed(numbered[index.cpu()]) if is_moved and bool(index.any()) else None


def _kept(
    call: Callable[[Mapping[str, Any]], list[Tensor]],
    values: Mapping[str, Any],
    source: Tensor,
    ids: Tensor,
    outputs: list[Tensor],
) -> list[Tensor | None]:
    """Return the source's row numbers for results that change only where the source does; None for other results."""
    axes = [d for d in range(source.ndim) if ids.shape[d] > 1]
    sizes = [source.shape[d] for d in axes]
    kept = [one.ndim == source.ndim and [one.shape[d] for d in axes] == sizes for one in outputs]
    if not axes or not any(kept):
        return [None] * len(outputs)
    again = call(values)
    kept = [own and _differs(one, same, ()) is False for own, one, same in zip(kept, outputs, again, strict=True)]
    noise = torch.rand(source.shape, generator=torch.Generator().manual_seed(_SEED)).to(source) + 0.5
    changed = source + noise * source.abs().mean().clamp(min=1e-3)
    for d in axes:
        index = torch.arange(source.shape[d], device=source.device)
        seen = [torch.zeros_like(index, dtype=torch.bool) for _ in outputs]
        for bit in range((source.shape[d] - 1).bit_length()):
            for side in (0, 1):
                inside = (index >> bit & 1) == side
                shown = torch.where(
                    inside.view([-1 if axis == d else 1 for axis in range(source.ndim)]), changed, source
                )
                for place, (one, other) in enumerate(zip(outputs, call(_with(values, source, shown)), strict=True)):
                    if kept[place]:
                        moved = _differs(one, other, (d,))
                        kept[place] = not bool((moved & ~inside).any())
                        seen[place] |= moved
            if not any(kept):
                return [None] * len(outputs)
        kept = [own and bool(reached.all()) for own, reached in zip(kept, seen, strict=True)]
    return [ids if own else None for own in kept]


def _differs(one: Tensor, other: Tensor, axes: tuple[int, ...]) -> Any:
    """Return whether two results differ by more than rounding; with an axis, one flag for each of its entries."""
    others = [d for d in range(one.ndim) if d not in axes]
    far = ((one - other).abs() > _ROUNDING * one.abs().amax().clamp(min=1e-30)) | (one.isnan() != other.isnan())
    if not axes:
        return bool(far.any())
    return far.movedim(axes[0], 0).flatten(1).any(1) if others else far


# Handling of operations that write into their arguments


def copied_if_written(func: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Return copies of the arguments by name, made before the operation runs, or None if it changes none."""
    if not getattr(func, "_schema", None) or not func._schema.is_mutable:
        return None
    values = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
    return {key: tree_map(_clone, value) for key, value in values.items()}


def on_copies(func: Any, values: Mapping[str, Any]) -> list[Tensor]:
    """Run an operation on copies of the arguments that it changes; return these copies and its other results."""
    kinds = [one.name for one in func._schema.arguments if one.alias_info and one.alias_info.is_write]
    copies = {key: tree_map(_clone, value) if key in kinds else value for key, value in values.items()}
    returned = [leaf for leaf in tree_leaves(func(**copies)) if isinstance(leaf, Tensor)]
    written = tree_leaves([copies[name] for name in kinds if name in copies])
    return written_and_returned([leaf for leaf in written if isinstance(leaf, Tensor)], returned)


def written_and_returned(written: list[Tensor], returned: list[Tensor]) -> list[Tensor]:
    """Return all results of an operation, each once."""
    return [*written, *(leaf for leaf in returned if not any(leaf is one for one in written))]


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf

"""Cast the weights of a file to the types of the model, and refuse casts that would destroy values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradcam_kit.errors import CheckpointError, kind_of
from gradcam_kit.models.state_dicts import few


def fitted(state: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the weights in the types of the model, and notes on weights that lost their fractions.

    Args:
        state: the values from the file, by the model's names.
        own: the state dict of the model.
        path: the file, for errors.

    Raises:
        CheckpointError: a value is not a tensor, has another shape, or would change by more than rounding or lost
            fractions; or the values of names that share a tensor of the model differ.
    """
    wrong, rounded, ready = [], [], dict[str, Any]()
    for name, value in own.items():
        if not isinstance(value, Tensor):
            ready[name] = state[name]  # an extra state, which its module reads itself
            continue
        problem = _problem(name, state[name], value)
        if problem is not None:
            wrong.append(problem)
        else:
            ready[name] = _cast(state[name], value)
            if _has_fractions(state[name], value):
                rounded.append(name)
    wrong += _torn(ready, own)
    if wrong:
        raise CheckpointError(f"{path} does not fit the model: {few(wrong)}")
    notes = (
        [f"fractions of {few(rounded)} in {path.name} are lost, because the model has integers there"]
        if rounded
        else []
    )
    return ready, tuple(notes)


def _torn(ready: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Describe names that share one tensor in the model but have different values in the file."""
    first: dict[tuple[Any, ...], str] = {}
    found = []
    for name, value in own.items():
        if name not in ready or not isinstance(value, Tensor) or is_lazy(value) or not value.numel():
            continue
        if value.layout != torch.strided or value.is_meta:
            continue
        place = value.device, value.data_ptr(), value.shape, value.stride()
        other = first.setdefault(place, name)
        if other != name and not torch.equal(ready[name], ready[other]):
            found.append(f"{other} and {name} differ in the file but are one tensor in the model")
    return found


def _has_fractions(given: Tensor, own: Tensor) -> bool:
    """Whether casting floats of a file to the model's integers changes them."""
    if not given.is_floating_point() or own.is_floating_point() or own.is_complex():
        return False
    return bool((given.double() != given.to(own.dtype).double()).any())


def _problem(name: str, given: Any, own: Tensor) -> str | None:
    """Return why a value cannot be used as a weight."""
    if not isinstance(given, Tensor):
        return f"{name} is {kind_of(given)} in the file, a tensor in the model"
    if is_lazy(own):
        return None  # a lazy module accepts any shape
    if given.shape != own.shape:
        return f"{name} is {tuple(given.shape)} in the file, {tuple(own.shape)} in the model"
    if given.layout != torch.strided or given.is_quantized != own.is_quantized or given.is_meta:
        kind = "quantized" if given.is_quantized else "without values" if given.is_meta else str(given.layout)
        return f"{name} is {kind} in the file, {own.dtype} in the model; save it as a dense tensor of numbers"
    if given.dtype == own.dtype or given.is_quantized:
        return None
    return _lost(name, given, own.dtype)


def _lost(name: str, given: Tensor, dtype: torch.dtype) -> str | None:
    """Describe what a cast to another type would lose beyond rounding of floats; None = nothing."""
    kinds = f"{name} is {_short(given.dtype)} in the file, {_short(dtype)} in the model"
    if given.is_complex() and not dtype.is_complex:
        return f"{kinds}, and its imaginary part would be lost"
    if given.is_floating_point() and (dtype.is_floating_point or dtype.is_complex):
        wide, cast = given.float() if given.element_size() < 4 else given, _plain(given, dtype)
        if bool((wide.isfinite() & ~cast.isfinite()).any()):
            return f"{kinds}, and {_example(wide, wide.isfinite() & ~cast.isfinite())} would overflow"
        return None
    if given.is_complex():
        return None
    wide = given.double() if given.is_floating_point() else given
    back = _plain(given, dtype)
    back = back.real if back.is_complex() else back
    kept = back.to(wide.dtype) == wide
    if given.is_floating_point():
        if dtype != torch.bool:
            kept = back.to(wide.dtype) == wide.trunc()  # fractions are reported by `fitted`
        kept &= wide.isfinite() & (wide.abs() < 2.0**63)
    return None if bool(kept.all()) else f"{kinds}, and {_example(wide, ~kept)} would become another value"


def _plain(given: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast values to another type, and return the result in a type that supports comparisons."""
    cast = given.to(dtype)
    return cast.float() if cast.is_floating_point() and cast.element_size() < 4 else cast


def _cast(given: Any, own: Tensor) -> Tensor:
    if is_lazy(own) or given.is_quantized:
        return given  # type: ignore[no-any-return]
    cast: Tensor = given.to(own.dtype)
    return cast


def _example(values: Tensor, chosen: Tensor) -> str:
    return f"{values[chosen].flatten()[0].item():g}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

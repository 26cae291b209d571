"""Infer the layout of a layer's output from shapes, not class names, and convert it to maps `(n, k, *s)` and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import ShapeError, is_out_of_memory, kind_of
from gradcam_kit.types import Reshape

_MOST_PREFIX_TOKENS = 8
_PREFIX_PARAMETERS = ("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token")
_REGISTER_PARAMETERS = ("reg_token", "register_tokens")


@runtime_checkable
class Layout(Protocol):
    """Conversion between a layer's own layout and maps, which only rearranges values."""

    def to_maps(self, output: Tensor) -> Float[Tensor, "n k *s"]:
        """Rearrange the layer's output, or its gradient."""
        ...

    def to_native(self, maps: Float[Tensor, "n k *s"], like: Tensor) -> Tensor:
        """Return the layer's output for these maps; tokens that maps leave out are taken from `like`."""
        ...


@dataclass(frozen=True)
class ChannelsFirst:
    """The layout `(n, k, *s)` of the output of convolutions."""

    def to_maps(self, output: Tensor) -> Float[Tensor, "n k *s"]:
        """Return the maps unchanged."""
        return output

    def to_native(self, maps: Float[Tensor, "n k *s"], like: Tensor) -> Tensor:
        """Return the maps unchanged."""
        return maps


@dataclass(frozen=True)
class ChannelsLast:
    """The layout `(n, *s, k)` of the output of window transformers and batch-first recurrent layers."""

    def to_maps(self, output: Tensor) -> Float[Tensor, "n k *s"]:
        """Move the channels to the front."""
        return output.movedim(-1, 1)

    def to_native(self, maps: Float[Tensor, "n k *s"], like: Tensor) -> Tensor:
        """Move the channels to the end."""
        return maps.movedim(1, -1)


@dataclass(frozen=True)
class SequenceFirst:
    """The layout `(s, n, k)` of the output of recurrent layers that are not `batch_first`."""

    def to_maps(self, output: Tensor) -> Float[Tensor, "n k *s"]:
        """Move the sequence to the end."""
        return output.permute(1, 2, 0)

    def to_native(self, maps: Float[Tensor, "n k *s"], like: Tensor) -> Tensor:
        """Move the sequence to the front."""
        return maps.permute(2, 0, 1)


@dataclass(frozen=True)
class Tokens:
    """The layout `(n, prefix + positions + suffix, k)` of the output of vision transformers.

    `order` lists the index of each position's token between prefix and suffix; None if the tokens are in row-major
    order.
    """

    grid: tuple[int, ...]
    prefix: int
    suffix: int = 0
    order: tuple[int, ...] | None = None

    def to_maps(self, output: Tensor) -> Float[Tensor, "n k *s"]:
        """Drop the tokens that are not positions, and lay out the others on the grid."""
        tokens = output[:, self.prefix : output.shape[1] - self.suffix]
        if self.order is not None:
            tokens = tokens[:, list(self.order)]
        maps: Tensor = tokens.movedim(-1, 1).unflatten(-1, self.grid)
        return maps

    def to_native(self, maps: Float[Tensor, "n k *s"], like: Tensor) -> Tensor:
        """Flatten the grid and put it between the other tokens of `like`."""
        tokens = maps.flatten(2).movedim(1, -1)
        if self.order is not None:
            tokens = torch.empty_like(tokens).index_copy(1, torch.tensor(self.order, device=tokens.device), tokens)
        behind = like[:, like.shape[1] - self.suffix :]
        return torch.cat([like[:, : self.prefix], tokens, behind], dim=1)


@dataclass(frozen=True)
class Custom:
    """The user's own `reshape`, inverted by tracing where each value goes."""

    reshape: Reshape

    def to_maps(self, output: Any) -> Shaped[Tensor, "n k *s"]:
        """Call the user's `reshape`, and check that it returns maps."""
        try:
            maps = self.reshape(output)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else kind_of(leaf) for leaf in tree_leaves(output)]
            raise ShapeError(
                f"reshape failed on an output of {shapes}: {error}; expected a callable from the layer's output to "
                "(n, k, *positions) that accepts any number of samples (-1 in place of n)"
            ) from error
        if not isinstance(maps, Tensor) or not 3 <= maps.ndim <= 5:
            found = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ShapeError(f"reshape returned {found}; expected a tensor (n, k, *positions)")
        return maps

    def to_native(self, maps: Float[Tensor, "n k *s"], like: Tensor) -> Tensor:
        """Put each value back in the position from which `reshape` took it."""
        places = torch.arange(like[0].numel(), device=like.device).view(1, *like.shape[1:])
        taken = self.to_maps(places).reshape(1, -1).expand(len(maps), -1)
        return like.flatten(1).scatter(1, taken, maps.flatten(1).to(like.dtype)).view_as(like)


def recurrent_layout(module: nn.Module, leaves: Sequence[Any], n: int, size: Sequence[int]) -> Layout | None:
    """Return the layout of a recurrent layer's sequence, the first tensor of its output, or None for other layers.

    The other tensors of the output are states, whose axes could be mistaken for samples and positions.
    """
    if not isinstance(module, nn.RNNBase) or len(size) != 1:
        return None
    sequence, samples = leaves[0], 0 if module.batch_first else 1
    if not isinstance(sequence, Tensor) or sequence.ndim != 3 or sequence.shape[samples] != n:
        return None  # a packed sequence, or one without an axis for samples
    return ChannelsLast() if module.batch_first else SequenceFirst()


def infer_layout(shape: Sequence[int], size: Sequence[int], model: nn.Module, layer: str) -> Layout:
    """Decide how an output of this shape is laid out for images with positions `size`.

    Raises:
        ShapeError: the output has no positions, or tokens that fit no grid or several grids, which the message lists.
    """
    axes = len(size)
    if len(shape) == axes + 2:
        first, last = shape[2:], shape[1:-1]
        if axes == 1 and first != size != last:
            return ChannelsLast() if _has_features_last(model, layer, shape) else ChannelsFirst()
        # Assume the layout of convolutions, unless channels last is the only or the better fit.
        channels_last = tuple(last) == tuple(size) if fits(first, size) else fits(last, size)
        return ChannelsLast() if channels_last and tuple(first) != tuple(size) else ChannelsFirst()
    if len(shape) == 3:
        return token_layout(shape[1], size, model, layer)
    raise ShapeError(
        f"layer {layer!r} returned shape {tuple(shape)}, which has no positions for images with "
        f"{axes} position axes; expected (n, k, {', '.join('hwd'[:axes])}). Choose an earlier layer or pass reshape="
    )


def _has_features_last(model: nn.Module, layer: str, shape: Sequence[int]) -> bool:
    """Whether the parameters that produced an output `(n, a, b)` belong to b features, as in recurrent layers.

    With a single position axis, every length fits the input, so the sizes do not determine the layout.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = [list(inner.parameters(recurse=False)) for inner in modules[layer].modules()] if layer in modules else []
    last: list[nn.Parameter] = next((own for own in reversed(owners) if own), [])
    sizes = {size for parameter in last for size in parameter.shape}
    outputs = {parameter.shape[0] for parameter in last}
    return shape[2] in sizes and shape[1] not in outputs


def fits(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether one stride could lead from `size` to `grid` along every axis, up to rounding and padding."""
    return all(s <= t for t, s in zip(size, grid, strict=True)) and has_aspect(grid, size)


def has_aspect(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a grid, which may be larger than the input, has the aspect ratio of the input."""
    lows = [t / (s + 1) for t, s in zip(size, grid, strict=True)]
    highs = [t / max(s - 1, 0.5) for t, s in zip(size, grid, strict=True)]
    return max(lows) < min(highs)


def is_resized(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether the two grids differ by an integer factor along every axis, up to padding."""
    return all(
        new % old == 0 or any(new in (old // stride, -(-old // stride)) for stride in range(1, old + 1))
        for old, new in zip(before, after, strict=True)
    )


def token_layout(tokens: int, size: Sequence[int], model: nn.Module, layer: str) -> Tokens:
    """Decide how many of a layer's tokens are prefix tokens, and the grid of the others.

    Raises:
        ShapeError: no grid fits, or several grids fit, which the message lists.
    """
    declared = prefix_tokens(model)
    prefixes = range(_MOST_PREFIX_TOKENS + 1) if declared is None else sorted({declared, 0}, reverse=True)
    possible = [(grid, prefix) for prefix in prefixes for grid in _grids(tokens - prefix, size)]
    exact = [(grid, prefix) for grid, prefix in possible if _is_exact(grid, size)]
    chosen = exact or possible
    if len(chosen) == 1:
        return Tokens(*chosen[0])
    options = "; ".join(f"{'x'.join(map(str, grid))} + {prefix} prefix" for grid, prefix in chosen) or "none"
    raise ShapeError(
        f"layer {layer!r} has {tokens} tokens, which fit {'no grid' if not chosen else 'several grids'} of an input of "
        f"{'x'.join(map(str, size))} (possible: {options}"
        f"{'' if declared is None else f'; prefix tokens that the model declares: {declared}'}). "
        "Pass reshape=, a callable from the layer's output to (n, k, *positions)"
    )


def _grids(count: int, size: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the grids of `count` positions with the input's aspect ratio."""
    if count < 2:
        return []
    if len(size) == 1:
        return [(count,)] if count <= size[0] else []
    grids = [
        (h, *rest)
        for h in range(1, count + 1)
        if count % h == 0
        for rest in ([(count // h,)] if len(size) == 2 else _grids(count // h, size[1:]))
    ]
    # Video has a separate stride over time, so only its spatial axes must agree.
    return [grid for grid in grids if prod(grid) == count and fits(grid[-2:], size[-2:])]


def _is_exact(grid: Sequence[int], size: Sequence[int]) -> bool:
    strides = {t / s for t, s in zip(size[-2:], grid[-2:], strict=True)}
    return len(strides) == 1 and strides.pop().is_integer() and all(t % s == 0 for t, s in zip(size, grid, strict=True))


def prefix_tokens(model: nn.Module) -> int | None:
    """Return the number of prefix tokens that the model declares, or None if the model does not declare any."""
    for module in model.modules():
        count = getattr(module, "num_prefix_tokens", None)
        if isinstance(count, int):
            return count
    found = _prefix_parameters(model)
    return sum(found.values()) if found else None


def has_class_token(model: nn.Module, prefix: int) -> bool:
    """Whether the first prefix token is a class token, not a register token."""
    registers = (count for key, count in _prefix_parameters(model).items() if key in _REGISTER_PARAMETERS)
    return prefix > sum(registers)


def _prefix_parameters(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        key = name.rpartition(".")[2]
        if key in _PREFIX_PARAMETERS:
            found[key] = 1
        elif key in _REGISTER_PARAMETERS:
            found[key] = parameter.shape[-2] if parameter.ndim > 1 else 1
    return found

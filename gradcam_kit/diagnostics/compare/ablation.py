"""Measure how much the loss increases if a unit is set to 0, by rerunning the part of the model after its layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import ClassLogit, Inputs, Request, capture
from gradcam_kit.diagnostics.checks.batches import main_input, moved, samples
from gradcam_kit.diagnostics.checks.preserving import device_of
from gradcam_kit.diagnostics.compare.losses import Loss, SampleLosses
from gradcam_kit.types import Evidence, LayerCapture


def ablate(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    axes: Mapping[str, int | None],
    batches: Iterable[tuple[Any, Any]],
    loss: Loss | None,
    batch_size: int,
) -> tuple[dict[str, Float[Tensor, " _"]], int, tuple[str, ...]]:
    """Sum the increase in loss for each unit over all samples; also return the number of samples, and notes.

    Args:
        model: the unwrapped model.
        layers: the layers whose units are set to 0, one by one.
        axes: layer -> axis of the units in its output.
        batches: pairs of inputs and labels.
        loss: see `SampleLosses`.
        batch_size: maximum number of rows (samples times ablated units) in one pass.
    """
    device = device_of(model)
    totals: dict[str, Tensor] = {}
    n = 0
    for inputs, labels in batches:
        n += samples(inputs)
        made = _as_call(moved(inputs, device))
        losses = SampleLosses(moved(labels, device), samples(inputs), loss)
        for name, module in layers.items():
            request = Request({name: module}, {name: Evidence.REPLAY}, losses, ClassLogit, _UnitsFirst(axes[name] or 1))
            with capture(model, made, request) as captured:
                rise = _rise(captured.layer(name, Evidence.REPLAY, batch_size), batch_size).cpu()
            totals[name] = totals[name] + rise if name in totals else rise
    return totals, n, ()


def _rise(layer: LayerCapture, batch_size: int) -> Float[Tensor, " k"]:
    """Return how much the loss increases if each unit is set to 0, summed over samples."""
    activations, plain = layer.activations, layer.scores
    assert plain is not None
    n, units = activations.shape[:2]
    at_once = max(1, batch_size // n)
    found = []
    for start in range(0, units, at_once):
        ablated = torch.arange(start, min(start + at_once, units), device=activations.device)
        rows = activations.repeat(len(ablated), *[1] * (activations.ndim - 1)).unflatten(0, (-1, n))
        rows[torch.arange(len(ablated), device=ablated.device), :, ablated] = 0
        index = torch.arange(n, device=ablated.device).repeat(len(ablated))
        losses = layer.replay(rows.flatten(0, 1), index).view(len(ablated), n)
        found.append((losses.double() - plain.double()).sum(1))
    return torch.cat(found)


class _UnitsFirst:
    """Converts a layer's output to `(n, k, *positions)`, with one position if it has none."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(self, output: Tensor) -> Tensor:
        maps = output.movedim(self.axis, 1)
        return maps.unsqueeze(2) if maps.ndim == 2 else maps


def _as_call(inputs: Any) -> Inputs:
    """Convert a batch to the arguments of a model call, with its main input as the images."""
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}
    main = main_input(inputs)
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    slot = next(place for place, value in places if value is main)
    return Inputs(args, kwargs, slot)

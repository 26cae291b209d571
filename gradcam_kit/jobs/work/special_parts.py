"""Examine attention, recurrent layers and pyramids for `doctor`, if a model has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradcam_kit.diagnostics.attention import capture_attention
from gradcam_kit.diagnostics.captured_attention import CapturedAttention
from gradcam_kit.diagnostics.compare.reading import evaluated
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.pyramid import pyramid_levels
from gradcam_kit.diagnostics.recurrent import trace_recurrent
from gradcam_kit.diagnostics.show.page import FeatureMaps, PartTable
from gradcam_kit.errors import CaptureError, GradCamKitError, InputError
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.work.observed import chosen_evenly, maps_of

_PICTURES, _LAYERS, _ROWS = 3, 6, 100


@dataclass
class SpecialParts:
    """Tables, maps and findings about special parts of a model.

    Attributes:
        tables: one table for each kind of part that the model has.
        maps: attention maps of some layers, averaged over the heads.
        findings: findings about heads, gates and levels.
        skipped: what was not examined, and why.
    """

    tables: list[PartTable] = field(default_factory=list)
    maps: list[FeatureMaps] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def special_parts(model: nn.Module, images: Tensor, *, detects: bool) -> SpecialParts:
    """Examine attention and recurrent layers, and the pyramid of a detector, without changing the model.

    Args:
        model: any model.
        images: a batch; only the first few are used for attention and the pyramid.
        detects: whether the model may be a detector, because its outputs are not class scores.
    """
    found, few = SpecialParts(), images[:_PICTURES]
    parts: list[tuple[str, Callable[[], None]]] = [
        ("attention", lambda: _attention(model, few, found)),
        ("recurrent layers", lambda: _recurrent(model, images, found)),
    ]
    if detects:
        parts.append(("pyramid", lambda: _pyramid(model, few, found)))
    for what, read in parts:
        _try(what, read, found)
    return found


def _try(what: str, read: Callable[[], None], found: SpecialParts) -> None:
    try:
        read()
    except (CaptureError, InputError):  # the model has no such part
        return
    except GradCamKitError as error:
        found.skipped.append((what, one_line(error)))


def _attention(model: nn.Module, images: Tensor, found: SpecialParts) -> None:
    with evaluated(model), torch.no_grad(), capture_attention(model) as attention:
        model(images)
    heads = attention.heads()
    rows = []
    for name in attention:
        own = [row for row in heads if row.layer == name]
        entropies = [row.entropy for row in own]
        flags = sorted({flag for row in own for flag in row.flags})
        said = ", ".join(f"{sum(flag in row.flags for row in own)} {flag}" for flag in flags)
        mean = sum(entropies) / len(entropies)
        rows.append((name, str(len(own)), f"{mean:.2f}", f"{min(entropies):.2f}", f"{max(entropies):.2f}", said or "-"))
    found.tables.append(
        PartTable(
            "Attention",
            "Entropy of the heads: 0 = attends to a single place, 1 = attends to all places equally. Heads of an "
            "untrained model are nearly uniform.",
            ("layer", "heads", "entropy", "lowest", "highest", "remarkable"),
            rows[:_ROWS],
        )
    )
    found.maps += _maps(attention)
    found.findings += attention.findings


def _maps(attention: CapturedAttention) -> Iterator[FeatureMaps]:
    """Yield the mean attention maps of the heads of some layers."""
    with_grid = [name for name in attention if attention.grids.get(name) is not None]
    for name in chosen_evenly(with_grid, _LAYERS):
        maps = attention.maps(name)
        yield maps_of(name, maps.mean(dim=1, keepdim=True), f"mean of {maps.shape[1]} heads")


def _recurrent(model: nn.Module, images: Tensor, found: SpecialParts) -> None:
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return
    with evaluated(model):
        traces = trace_recurrent(model, images)
    rows = []
    for name, trace in traces.items():
        for layer, ways in enumerate(trace.steps.directions):
            for reverse, way in enumerate(ways):
                where = f"{name}, layer {layer}" + (", in reverse" if reverse else "")
                for gate, values in way.gates.items():
                    own = values[trace.active].double()
                    rows.append((where, gate, f"{float(own.mean()):.2f}", f"{float(own.std(correction=0)):.2f}"))
    found.tables.append(
        PartTable(
            "Recurrent layers",
            "Gates over all samples and steps: a gate with a deviation near 0 does not react to its input.",
            ("layer", "gate", "mean", "deviation"),
            rows[:_ROWS],
        )
    )
    found.findings += traces.findings


def _pyramid(model: nn.Module, images: Tensor, found: SpecialParts) -> None:
    levels = pyramid_levels(model, list(images))
    rows = [
        (
            own.name,
            " x ".join(map(str, own.shape)),
            "-" if own.sizes is None else f"{own.sizes[0]:.0f} to {own.sizes[1]:.0f}",
            *(str(own.objects[size]) for size in ("small", "medium", "large")),
        )
        for own in levels.levels
    ]
    found.tables.append(
        PartTable(
            f"Levels of {levels.pyramid}",
            "How many objects come from each level, by the size of the objects.",
            ("level", "shape", "anchors, pixels", "small", "medium", "large"),
            rows,
        )
    )
    found.findings += levels.findings

"""Run one pass that shows where in the images the values of every layer come from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.layouts import Layout, Tokens
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.provenance.places import FOREIGN, Places, origin
from gradcam_kit.capture.provenance.reading import read_layout
from gradcam_kit.capture.provenance.tracker import Tracker
from gradcam_kit.errors import is_out_of_memory, raise_interruption

_UNUSUAL = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError)
_known: WeakKeyDictionary[nn.Module, dict[Hashable, Evidence]] = WeakKeyDictionary()
"""The evidence about each model, by the shapes of its inputs."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a module's output: its layout, or the reason why it has none. If neither is set, nothing is known.

    Attributes:
        shape: shape of the output for one image.
        layout: how positions and channels lie in the output; None if there is no layout.
        reason: why there is no layout; empty if there is one, or if nothing is known.
    """

    shape: tuple[int, ...]
    layout: Layout | None = None
    reason: str = ""


@dataclass
class Evidence:
    """The verdicts on the outputs of every module.

    Attributes:
        verdicts: the verdicts on each module's output tensors in the traced pass.
        channels: the axis of the raw images over which the model sums first; None if there is none, or if it sums over
            several axes at once.
        unknown: names of the operations after which the origin of values is unknown.
    """

    verdicts: WeakKeyDictionary[nn.Module, list[Verdict]] = field(default_factory=WeakKeyDictionary)
    channels: int | None = 1
    unknown: tuple[str, ...] = ()

    def of(self, module: nn.Module, shape: Sequence[int], n: int) -> Verdict | None:
        """Return the verdict on a module's output of this shape for n images, or None if there is none."""
        own = self.verdicts.get(module, [])
        found = [one for one in own if one.shape == (1, *shape[1:])]
        if found:
            return found[0] if found[0].layout is not None or found[0].reason else None
        for one in own:
            for axis, size in enumerate(one.shape):
                if size == 1 and (*one.shape[:axis], n, *one.shape[axis + 1 :]) == tuple(shape):
                    return Verdict(one.shape, None, f"its samples lie along axis {axis}, not along the first one")
        return None

    def of_tokens(self, tokens: int) -> Verdict | None:
        """Return the verdict on outputs `(n, tokens, k)`, preferably one with a grid, or None if there is none."""
        found = [one for own in self.verdicts.values() for one in own if one.shape[:2] == (1, tokens) == one.shape[:-1]]
        known = [one for one in found if one.layout is not None or one.reason]
        return next((one for one in known if isinstance(one.layout, Tokens)), next(iter(known), None))


def recall(model: nn.Module, inputs: Inputs) -> Evidence | None:
    """Return the evidence for inputs of these shapes, or None if it has not been gathered yet."""
    return _known.get(model, {}).get(_signature(inputs))


def gather(model: nn.Module, inputs: Inputs) -> Evidence:
    """Run the model once on the first image, and record for every layer where its values come from."""
    found = _look(model, inputs)
    _known.setdefault(model, {})[_signature(inputs)] = found
    return found


def trust_shapes(model: nn.Module, inputs: Inputs) -> None:
    """Remember that the shapes of a model's outputs are unambiguous, so that no pass is traced for these inputs."""
    _known.setdefault(model, {}).setdefault(_signature(inputs), Evidence())


def unknown_operations(model: nn.Module) -> list[str]:
    """Return the names of the operations after which places are unknown, in all traced passes of a model."""
    return list(dict.fromkeys(name for found in _known.get(model, {}).values() for name in found.unknown))


def _signature(inputs: Inputs) -> Hashable:
    leaves = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    shapes = [("n", *leaf.shape[1:]) if leaf.ndim and len(leaf) == inputs.n else tuple(leaf.shape) for leaf in leaves]
    return inputs.slot, inputs.channels, tuple(shapes)


def _look(model: nn.Module, inputs: Inputs) -> Evidence:
    device = inputs.images.device
    seen: list[tuple[nn.Module, tuple[int, ...], Tensor | None]] = []
    with untouched(model, device), torch.no_grad():
        call = inputs.first()
        raw = call.raw
        places = Places(raw.shape[1:])
        tracker = Tracker(places)
        for leaf in tree_leaves((call.args, call.kwargs)):
            if isinstance(leaf, Tensor):
                tracker.mark(leaf, places.image() if leaf is raw else origin(leaf.ndim, FOREIGN))

        def watch(module: nn.Module, args: Any, output: Any) -> None:
            seen.extend(
                (module, tuple(leaf.shape), tracker.memory.get(leaf))
                for leaf in tree_leaves(output)
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim >= 3
            )

        try:
            with holding_hooks() as attach:
                for one in model.modules():
                    attach.after(one, watch)
                with tracker:
                    Runner.of(model, device)(call)
        except _UNUSUAL as error:  # a model that fails only under tracing is judged by its shapes
            raise_interruption(error)
            if is_out_of_memory(error):
                raise
            return Evidence(channels=1 if raw.ndim < 5 else None)
    axes = [axis for axis in range(places.axes) if inputs.channels is None or axis != inputs.channels - 1]
    own = None if inputs.channels is None else inputs.channels - 1
    known: dict[Any, Layout | str] = {}
    unknown = tuple(dict.fromkeys(tracker.unknown))
    evidence = Evidence(channels=_first_summed([ids for _, _, ids in seen], places), unknown=unknown)
    for module, shape, ids in seen:
        key = shape, id(ids)
        if key not in known:
            known[key] = read_layout(shape, ids, places, axes, own, unknown)
        found = known[key]
        reason, layout = (found, None) if isinstance(found, str) else ("", found)
        evidence.verdicts.setdefault(module, []).append(Verdict(shape, layout, reason))
    return evidence


def _first_summed(seen: Sequence[Tensor | None], places: Places) -> int | None:
    """Return the axis of the raw images over which a layer first sums completely, or None if no layer does.

    The result is also None if this layer sums over several axes at once, because the layer then pools positions, too,
    and does not show which axis has the channels.
    """
    last = torch.tensor([size - 1.0 for size in places.sizes])
    for ids in seen:
        if ids is None:
            continue
        low, high, flags = places.rows(ids)
        placed = low[..., 0].isfinite()
        if not bool(placed.any()) or bool(flags[..., 1].any()):
            continue
        covered = ((low == 0) & (high == last))[placed].all(0)
        summed = [axis + 1 for axis, size in enumerate(places.sizes) if size > 1 and bool(covered[axis])]
        if summed:
            return summed[0] if len(summed) == 1 else None
    return None

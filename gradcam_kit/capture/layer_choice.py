"""Run the model to choose the target layer, judging layers by shapes and gradients, not by class names."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gradcam_kit.capture.exploration import Seen, explore
from gradcam_kit.capture.images.choice import sees_images
from gradcam_kit.capture.layouts import ChannelsLast, Tokens
from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.model.layers import find_layers
from gradcam_kit.capture.provenance.evidence import unknown_operations
from gradcam_kit.capture.recording import ATTENTION, INPUT
from gradcam_kit.errors import LayerNotFoundError, interruption, is_same_failure
from gradcam_kit.targets.classes import ClassTarget
from gradcam_kit.types import LayerCandidate, LayerChoice, Target

_log = logging.getLogger("gradcam_kit")
_FEW = 4


def layer_candidates(
    model: nn.Module,
    inputs: Inputs,
    targets: Target | None,
    target_type: Callable[[Any], ClassTarget],
    keep_modes: bool = False,
) -> list[LayerCandidate]:
    """Return all layers with positions in the order in which they ran, and mark the chosen layer, with the reason.

    The model usually runs once forward and once backward. For classes, the first image is enough. Other targets may
    take a different path for each image (boxes come from several levels of a feature pyramid), so they get the first
    few images, or the full batch if the target cannot select samples.
    """
    if targets is None or hasattr(targets, "select"):
        count = 1 if targets is None or isinstance(targets, ClassTarget) else _FEW
        index = torch.arange(min(count, inputs.n), device=inputs.images.device)
        found = _explore_few(model, inputs, index, targets, target_type, keep_modes)
        if isinstance(found, Exception):
            again = _explore_few(model, inputs, index, targets, target_type, keep_modes)
            if not isinstance(again, Exception) or not is_same_failure(found, again):
                raise found  # the second run did not repeat the error, so the samples are not its cause
            _log.debug("searching for layers with the full batch: %s", again)
            found = explore(model, inputs, targets, target_type, keep_modes)
        seen, scored = found
    else:
        seen, scored = explore(model, inputs, targets, target_type, keep_modes)
    names = sees_images(model, inputs, {one.name: one.module for one in seen})
    seen = [one for one in seen if one.name in names]
    chosen, reason = _choose(seen, scored)
    return [
        LayerCandidate(
            name=one.name,
            shape=one.shape,
            layout=type(one.layout).__name__,
            reached=one.reached,
            hidden=one.hidden,
            outermost=_outermost(one, seen).name,
            normalizes=one.is_normalization,
            chosen=one is chosen,
            reason=reason if one is chosen else "",
        )
        for one in seen
    ]


def _explore_few(
    model: nn.Module,
    inputs: Inputs,
    index: Int[Tensor, " few"],
    targets: Any,
    target_type: Callable[[Any], ClassTarget],
    keep_modes: bool,
) -> tuple[list[Seen], bool] | Exception:
    """Return the result of `explore` on some samples, or its error if the selection of samples may have caused it.

    Which other inputs have one entry per sample cannot always be determined. With the full batch this does not matter.
    """
    try:
        few = inputs.with_images(inputs.images[index], index)
        return explore(model, few, targets and targets.select(index), target_type, keep_modes)
    except Exception as error:
        if interruption(error) is not None or (inputs.n == len(index) and not isinstance(error, IndexError)):
            raise
        traceback.clear_frames(error.__traceback__)  # the frames of the traceback hold activations
        return error


def choose_layers(
    model: nn.Module,
    inputs: Inputs,
    targets: Target | None,
    target_type: Callable[[Any], ClassTarget],
    choice: LayerChoice,
) -> dict[str, nn.Module]:
    """Return the layers that are chosen for `target_layers=None`.

    Raises:
        LayerNotFoundError: no layer is suitable; the message lists the candidates.
    """
    candidates = partial(layer_candidates, model, inputs, targets, target_type)
    return choose_among(candidates, model, inputs.size, choice)


def choose_among(
    look: Callable[[], list[LayerCandidate]], model: nn.Module, size: tuple[int, ...], choice: LayerChoice
) -> dict[str, nn.Module]:
    """Choose layers as `choose_layers` does, but explore the model only if the choice depends on it.

    Args:
        look: function that returns the candidates, by calling `layer_candidates`.
        model: the model of the candidates.
        size: the position axes `*t` of the images.
        choice: which kind of layers to choose.
    """
    if choice is LayerChoice.INPUT:
        return {INPUT: model}
    if choice is LayerChoice.ATTENTION:
        return {ATTENTION: model}
    candidates = look()
    names = [one.name for one in candidates if one.chosen]
    if choice is LayerChoice.BLOCK:
        names = _block_norms(candidates)
    if choice is LayerChoice.STREAM:
        names = _stream(candidates) or names
    if choice is LayerChoice.RESOLUTIONS:
        last_of = {one.shape[1:]: one.name for one in candidates if one.reached or one.hidden}
        names = list(last_of.values())[-2:]
    if choice is LayerChoice.CONVOLUTIONS:
        # The kernel of a convolution has axes for output channels, input channels, and each position axis.
        axes = 2 + len(size)
        modules = find_layers(model, [one.name for one in candidates], model) if candidates else {}
        weights = {name: getattr(module, "weight", None) for name, module in modules.items()}
        kernels = (one for one in candidates if getattr(weights[one.name], "ndim", 0) == axes)
        names = [one.name for one in kernels if one.reached or one.hidden]
    if names:
        return find_layers(model, names, model)
    listed = ", ".join(f"{one.name} {one.shape}" for one in candidates[-8:]) or "none has positions"
    if lost := ", ".join(unknown_operations(model)):
        listed = f"{listed}; layers after {lost} are left out, because such an operation may move positions"
    raise LayerNotFoundError(
        f"{type(model).__name__} has no {_MISSING.get(choice, 'layer with positions that the score depends on')} "
        f"(candidates: {listed}); pass target_layers= and, if the layer's output has an unusual layout, reshape="
    )


_MISSING = {
    LayerChoice.BLOCK: "transformer block, which is a module with two or more normalizations of tokens",
    LayerChoice.CONVOLUTIONS: "convolution that gradients reach",
}


def _block_norms(candidates: list[LayerCandidate]) -> list[str]:
    """Return the first normalization of the last block."""
    return [names[0] for names in _blocks(candidates, [Tokens.__name__]).values()][-1:]


def _blocks(candidates: list[LayerCandidate], layouts: Sequence[str]) -> dict[str, list[str]]:
    """Map each block, a module with two or more normalizations of tokens, to these normalizations."""
    blocks: dict[str, list[str]] = {}
    for one in candidates:
        if one.normalizes and one.layout in layouts:
            # Treat each call of a block as a separate block, whose normalizations share the number of the call.
            path, mark, call = one.name.partition("#")
            blocks.setdefault(f"{path.rpartition('.')[0]}{mark}{call}", []).append(one.name)
    return {name: norms for name, norms in blocks.items() if len(norms) > 1}


def _stream(candidates: list[LayerCandidate]) -> list[str]:
    """Return the patch embedding and the outputs of the blocks on its grid, or nothing for models without tokens.

    The patch embedding is the first layer of tokens before the blocks. If no module computes it, the last maps on the
    same grid take its place, because the tokens were computed from them.
    """
    tokens = (Tokens.__name__, ChannelsLast.__name__)  # window transformers keep the tokens on their grid
    blocks = _blocks(candidates, tokens)
    seen = [one for one in candidates if one.reached or one.hidden]
    if not blocks:
        return [one.outermost for one in seen if one.layout == Tokens.__name__][:1]
    first_norm = next(iter(blocks.values()))[0]
    grid = next(one.shape[1:] for one in candidates if one.name == first_norm)
    seen = [one for one in seen if one.shape[1:] == grid]
    inside = [one for one in seen if any(one.name.startswith(f"{name.partition('#')[0]}.") for name in blocks)]
    before = list(takewhile(lambda one: one not in inside, seen))
    embedding = [one for one in before if one.layout in tokens][:1] or before[-1:]
    return [one.outermost for one in embedding] + [one.name for one in seen if one.name in blocks]


def _choose(seen: list[Seen], scored: bool) -> tuple[Seen | None, str]:
    """Return the last spatial layer on which the score depends, before a dense output, and the reason."""
    usable = [one for one in seen if one.depends or one.hidden] if scored else seen
    usable = [one for one in usable if not one.is_output] or usable
    if not usable:
        return None, ""
    norms = [one for one in usable if one.is_normalization and isinstance(one.layout, Tokens)]
    if norms and isinstance(usable[-1].layout, Tokens):
        # Exclude keys, hidden units and scores of the tokens: tokens are as wide as their normalizations.
        usable = [one for one in usable if one.shape[0] == norms[-1].shape[0]]
    last = usable[-1]
    if not scored:
        return _outermost(last, usable), "the last layer with positions (the output could not be read as scores)"
    if last.reached:
        return _outermost(last, usable), "the last layer with positions on which the score depends"
    if last.hidden:  # do not fall back to another layer: the errors of methods that use gradients name the checkpoint
        return _outermost(last, usable), "the last layer with positions, inside a reentrant checkpoint"
    reached = [one for one in usable if one.reached]
    if isinstance(last.layout, Tokens) and (norms := [one for one in norms if one.reached or one.hidden]):
        return norms[-1], "the last normalization that sends gradients to the patch tokens"
    if reached:
        return _outermost(reached[-1], usable), "the last layer with positions that gradients reach"
    return _outermost(last, usable), "the last layer with positions (gradients reach at most one of its positions)"


def _outermost(chosen: Seen, usable: list[Seen]) -> Seen:
    """Return the module with the shortest path among those that returned the same tensor: `layer4`, not `layer4.2`."""
    same = [one for one in usable if one.origin is chosen.origin and one.version == chosen.version]
    return min(same, key=lambda one: one.name.count("."))

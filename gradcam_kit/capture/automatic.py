"""Choosing the target layer by running the model: shapes and gradients decide, never class names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gradcam_kit.capture.hooks import ATTENTION, INPUT
from gradcam_kit.capture.inputs import Inputs, Runner
from gradcam_kit.capture.layers import find_layers
from gradcam_kit.capture.state import is_scripted, untouched, version
from gradcam_kit.capture.targets import ClassTarget, predicted_classes, score
from gradcam_kit.capture.tokens import Layout, Tokens, infer_layout, is_resized, recurrent_layout
from gradcam_kit.errors import GradCamKitError, LayerNotFoundError, ShapeError
from gradcam_kit.types import LayerCandidate, LayerChoice, Target

_log = logging.getLogger("gradcam_kit")
_FEW = 4


@dataclass
class _Seen:
    """The output of one module in the exploring pass.

    Each module hands on an alias of its own, so that a gradient there says that the model uses this module's output,
    and not only what was computed inside. `origin` is what modules around each other have in common.
    """

    name: str
    module: nn.Module
    tensor: Tensor
    origin: Tensor
    version: int
    layout: Layout
    shape: tuple[int, ...]
    calls: int = 1
    reached: bool = False
    depends: bool = False
    is_output: bool = False

    @property
    def is_normalization(self) -> bool:
        """Whether the module owns nothing but one number per channel: it normalizes, it does not mix."""
        own = list(self.module.parameters(recurse=False))
        return bool(own) and all(parameter.shape == (self.shape[0],) for parameter in own)

    def is_split_into_heads(self, tokens: set[tuple[int, int]]) -> bool:
        """Whether the output is `(n, heads, tokens, d)`, or with the two exchanged, of so many and so wide tokens."""
        if self.tensor.ndim != 4:
            return False
        _, first, second, d = self.tensor.shape
        single = {(1, width) for _, width in tokens}  # a query that pools the tokens
        return not {(first, second * d), (second, first * d)}.isdisjoint(tokens | single)


def layer_candidates(
    model: nn.Module,
    inputs: Inputs,
    targets: Target | None,
    target_type: Callable[[Any], ClassTarget],
) -> list[LayerCandidate]:
    """All layers with positions in the order in which they ran, with the one that is chosen and why.

    The model runs once, and once backward: for classes on the first image, for other targets, which may take another
    path for each image (as boxes do that come from several levels), on the first few, and on all of them for a target
    that cannot select samples.
    """
    if targets is None or hasattr(targets, "select"):
        count = 1 if targets is None or isinstance(targets, ClassTarget) else _FEW
        index = torch.arange(min(count, inputs.n), device=inputs.images.device)
        few = inputs.with_images(inputs.images[index], index)
        try:
            seen, scored = _explore(model, few, targets and targets.select(index), target_type)
        except Exception as error:  # what belongs to the samples cannot always be told: the whole batch can
            if inputs.n == len(index) and not isinstance(error, IndexError):
                raise
            _log.debug("the layers are looked for with the whole batch: %s", error)
            seen, scored = _explore(model, inputs, targets, target_type)
    else:
        seen, scored = _explore(model, inputs, targets, target_type)
    chosen, reason = _choose(seen, scored)
    return [
        LayerCandidate(
            name=one.name,
            shape=one.shape,
            layout=type(one.layout).__name__,
            reached=one.reached,
            normalizes=one.is_normalization,
            chosen=one is chosen,
            reason=reason if one is chosen else "",
        )
        for one in seen
    ]


def choose_layers(
    model: nn.Module,
    inputs: Inputs,
    targets: Target | None,
    target_type: Callable[[Any], ClassTarget],
    choice: LayerChoice,
) -> dict[str, nn.Module]:
    """The layers that `target_layers=None` stands for.

    Raises:
        LayerNotFoundError: no layer suits; the message lists the candidates.
    """
    candidates = partial(layer_candidates, model, inputs, targets, target_type)
    return choose_among(candidates, model, inputs.size, choice)


def choose_among(
    explore: Callable[[], list[LayerCandidate]], model: nn.Module, size: tuple[int, ...], choice: LayerChoice
) -> dict[str, nn.Module]:
    """`choose_layers`, for candidates that are only looked for if the choice depends on them.

    Args:
        explore: gives what `layer_candidates` found.
        model: theirs.
        size: the positions of the images.
        choice: what to choose.
    """
    if choice is LayerChoice.INPUT:
        return {INPUT: model}
    if choice is LayerChoice.ATTENTION:
        return {ATTENTION: model}
    candidates = explore()
    names = [one.name for one in candidates if one.chosen]
    if choice is LayerChoice.BLOCK:
        names = _block_norms(candidates)
    if choice is LayerChoice.RESOLUTIONS:
        last_of = {one.shape[1:]: one.name for one in candidates if one.reached}
        names = list(last_of.values())[-2:]
    if choice is LayerChoice.CONVOLUTIONS:
        # A convolution owns one kernel: channels out, channels in, and one axis for each position axis.
        axes = 2 + len(size)
        weights = {one.name: getattr(model.get_submodule(one.name), "weight", None) for one in candidates}
        kernels = (one for one in candidates if getattr(weights[one.name], "ndim", 0) == axes)
        names = [one.name for one in kernels if one.reached]
    if names:
        return find_layers(model, names, model)
    listed = ", ".join(f"{one.name} {one.shape}" for one in candidates[-8:]) or "none has positions"
    raise LayerNotFoundError(
        f"{type(model).__name__} has no {_MISSING.get(choice, 'layer with positions that the score depends on')} "
        f"(candidates: {listed}); pass target_layers= and, if its output is laid out in an unusual way, reshape="
    )


_MISSING = {
    LayerChoice.BLOCK: "transformer block, which is a module with two or more normalizations of tokens",
    LayerChoice.CONVOLUTIONS: "convolution that runs once and that gradients reach",
}


def _block_norms(candidates: list[LayerCandidate]) -> list[str]:
    """The first normalization of the last block: of the last module that holds two or more of token layers."""
    blocks: dict[str, list[str]] = {}
    for one in candidates:
        if one.normalizes and one.layout == Tokens.__name__:
            blocks.setdefault(one.name.rpartition(".")[0], []).append(one.name)
    firsts = [names[0] for names in blocks.values() if len(names) > 1]
    return firsts[-1:]


def _explore(
    model: nn.Module, inputs: Inputs, target: Target | None, target_type: Callable[[Any], ClassTarget]
) -> tuple[list[_Seen], bool]:
    seen: dict[int, _Seen] = {}
    thread = threading.get_ident()
    origins: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if threading.get_ident() != thread:
                return None
            if id(module) in seen:
                seen[id(module)].calls += 1
                return None
            leaves, spec = tree_flatten(output)
            layout = recurrent_layout(module, leaves, inputs.n, inputs.size)
            places = [
                i
                for i, leaf in enumerate(leaves)
                if isinstance(leaf, Tensor)
                and leaf.is_floating_point()
                and leaf.ndim >= 3
                and leaf.shape[0] == inputs.n
            ]
            if layout is not None:
                places = [0]
            if len(places) != 1:
                return None
            tensor = leaves[places[0]]
            try:
                layout = layout or infer_layout(tensor.shape, inputs.size, model, name)
            except ShapeError:
                return None
            if not tensor.requires_grad:
                # A graph starts here: at the first layer, and behind whatever cut it.
                with torch.enable_grad():
                    tensor = tensor.detach().requires_grad_().clone()
            with torch.enable_grad():
                alias = tensor.view_as(tensor)
            _, origin = origins.get(id(tensor), (tensor, tensor))
            origins[id(alias)] = alias, origin
            shape = tuple(layout.to_maps(tensor).shape[1:])
            if max(shape[1:]) > 1:
                seen[id(module)] = _Seen(name, module, alias, origin, version(tensor), layout, shape)
            leaves[places[0]] = alias
            return tree_unflatten(leaves, spec)

        return hook

    run = Runner.of(model, inputs.images.device)
    with untouched(model, inputs.images.device), torch.enable_grad():
        observed = [(name, module) for name, module in model.named_modules() if name and not is_scripted(module)]
        handles = [module.register_forward_hook(watch(name)) for name, module in observed]
        try:
            output = run(inputs.with_images(inputs.images))
        finally:
            for handle in handles:
                handle.remove()
        found = [one for one in seen.values() if one.calls == 1]
        tokens = {(one.tensor.shape[1], one.shape[0]) for one in found if isinstance(one.layout, Tokens)}
        found = _from_the_image([one for one in found if not one.is_split_into_heads(tokens)])
        try:
            target = target if target is not None else target_type(predicted_classes(output))
            scores = score(target, output, inputs.n)
        except GradCamKitError:
            if target is not None:
                with torch.no_grad():
                    score(target, output, inputs.n)  # raises, unless all that it lacks are gradients
            return found, False  # methods without a target, or without gradients, still need a layer
        total = scores.sum()
        inside = [one for one in found if one.tensor.requires_grad]
        dense = any(
            isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim == inputs.images.ndim
            for leaf in tree_leaves(output)
        )
        if total.requires_grad and inside:
            tensors = [one.tensor for one in inside]
            # A head of zeros, as before training, stops every gradient but NaN.
            for start in (torch.ones_like(total), torch.full_like(total, torch.nan)):
                gradients = torch.autograd.grad(total, tensors, start, allow_unused=True, retain_graph=True)
                for one, gradient in zip(inside, gradients, strict=True):
                    one.depends = gradient is not None
                    one.reached = gradient is not None and _reaches(one.layout.to_maps(gradient))
                    if dense and gradient is not None:
                        # Only the explained classes count, so these are their scores at each position already.
                        counting = (one.layout.to_maps(gradient) != 0).flatten(2).any(2).sum(1)
                        one.is_output = bool((counting <= scores[0].numel()).all())
                if any(one.reached for one in inside):
                    break
        return found, True


def _from_the_image(seen: list[_Seen]) -> list[_Seen]:
    """All but tokens that are none of an image, such as the queries of a detector, whose number happens to fit a grid.

    A grid of tokens is that of an earlier layer, or was pooled or enlarged from the layer before by a whole number.
    """
    kept: list[_Seen] = []
    known: set[tuple[int, ...]] = set()
    for one in seen:
        grid = one.shape[1:]
        is_new = isinstance(one.layout, Tokens) and len(grid) > 1 and bool(known) and grid not in known
        if is_new and not is_resized(kept[-1].shape[1:], grid):
            continue
        known.add(grid)
        kept.append(one)
    return kept


def _reaches(gradients: Float[Tensor, "n k *s"]) -> bool:
    """Whether gradients arrive at more than one position of every sample.

    One position is where a recurrent layer's last state is read; boxes take other levels of a pyramid in each image.
    """
    return bool(((gradients != 0).any(1).flatten(1).sum(1) > 1).all())


def _choose(seen: list[_Seen], scored: bool) -> tuple[_Seen | None, str]:
    """The last layer that still has positions and on which the score depends, in front of a dense output."""
    usable = [one for one in seen if one.depends] if scored else seen
    usable = [one for one in usable if not one.is_output] or usable
    if not usable:
        return None, ""
    norms = [one for one in usable if one.is_normalization and isinstance(one.layout, Tokens)]
    if norms and isinstance(usable[-1].layout, Tokens):
        # Keys, hidden units and scores of the tokens are not the tokens, which are as wide as their norms.
        usable = [one for one in usable if one.shape[0] == norms[-1].shape[0]]
    last = usable[-1]
    if not scored:
        return _outermost(last, usable), "the last layer with positions (the output could not be read as scores)"
    if last.reached:
        return _outermost(last, usable), "the last layer with positions on which the score depends"
    reached = [one for one in usable if one.reached]
    if isinstance(last.layout, Tokens) and (norms := [one for one in norms if one.reached]):
        return norms[-1], "the last normalization that sends gradients to the patch tokens"
    if reached:
        return _outermost(reached[-1], usable), "the last layer with positions that gradients reach"
    return _outermost(last, usable), "the last layer with positions (its gradient is zero for the first image)"


def _outermost(chosen: _Seen, usable: list[_Seen]) -> _Seen:
    """Of the modules that returned this very tensor, the one with the shortest path: `layer4`, not `layer4.2`."""
    same = [one for one in usable if one.origin is chosen.origin and one.version == chosen.version]
    return min(same, key=lambda one: one.name.count("."))

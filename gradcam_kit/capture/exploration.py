"""One pass that looks at every layer: its positions, and whether the score depends on them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gradcam_kit.capture.layouts import Layout, Tokens, infer_layout, is_resized, recurrent_layout
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import is_scripted, untouched, version
from gradcam_kit.errors import GradCamKitError, ShapeError
from gradcam_kit.targets.classes import ClassTarget, predicted_classes, score
from gradcam_kit.types import Target


@dataclass
class Seen:
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


def explore(
    model: nn.Module, inputs: Inputs, target: Target | None, target_type: Callable[[Any], ClassTarget]
) -> tuple[list[Seen], bool]:
    """The layers with positions that ran once, in their order, and whether the model's output could be scored."""
    seen: dict[int, Seen] = {}
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
                seen[id(module)] = Seen(name, module, alias, origin, version(tensor), layout, shape)
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


def _from_the_image(seen: list[Seen]) -> list[Seen]:
    """All but tokens that are none of an image, such as the queries of a detector, whose number happens to fit a grid.

    A grid of tokens is that of an earlier layer, or was pooled or enlarged from the layer before by a whole number.
    """
    kept: list[Seen] = []
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

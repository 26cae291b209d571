"""Run the model once to find the layers that have positions, and check whether the score depends on them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import CheckpointFunction

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.gradients.backward import differentiate
from gradcam_kit.capture.layouts import ChannelsFirst, Layout, Tokens, is_resized, recurrent_layout
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import untouched, version
from gradcam_kit.capture.provenance.evidence import gather, recall, trust_shapes
from gradcam_kit.capture.provenance.settling import is_in_doubt, layout_by_shape
from gradcam_kit.capture.reuse import is_chain, is_padding
from gradcam_kit.errors import GradCamKitError, ShapeError
from gradcam_kit.targets.classes import ClassTarget, score
from gradcam_kit.targets.outputs import predicted_classes
from gradcam_kit.types import Target


@dataclass
class Seen:
    """The output of one module in the exploring pass.

    Each module returns its own alias of the tensor, so that a gradient at the alias shows that the model uses this
    module's output, not just a tensor computed inside it.

    Attributes:
        name: name of the module, with the number of the call in a chain of calls ("act#2").
        module: the module.
        tensor: the alias.
        origin: the tensor that nested modules return in common.
        version: number of in-place changes of the tensor when the module returned it.
        layout: layout of the output.
        shape: shape `(k, *s)` of the maps of one sample.
        node: node of the graph that computed the output.
        is_settled: whether the type of the module determines the layout.
        reached: whether gradients arrive at more than one position of every sample.
        depends: whether the score depends on the output.
        hidden: whether the module ran inside a reentrant checkpoint, which leaves no graph.
        is_output: whether the output already holds scores per position.
    """

    name: str
    module: nn.Module
    tensor: Tensor
    origin: Tensor
    version: int
    layout: Layout
    shape: tuple[int, ...]
    node: Any = None
    is_settled: bool = False
    reached: bool = False
    depends: bool = False
    hidden: bool = False
    is_output: bool = False

    @property
    def is_normalization(self) -> bool:
        """Whether the module has parameters, all with one entry per channel, as normalizations have."""
        own = list(self.module.parameters(recurse=False))
        return bool(own) and all(parameter.shape == (self.shape[0],) for parameter in own)

    def is_split_into_heads(self, tokens: set[tuple[int, int]]) -> bool:
        """Whether the output is `(n, heads, tokens, d)` or `(n, tokens, heads, d)`, given pairs (tokens, heads * d)."""
        if self.tensor.ndim != 4:
            return False
        _, first, second, d = self.tensor.shape
        single = {(1, width) for _, width in tokens}  # shape of the output of a query that pools the tokens
        return not {(first, second * d), (second, first * d)}.isdisjoint(tokens | single)


def explore(
    model: nn.Module,
    inputs: Inputs,
    target: Target | None,
    target_type: Callable[[Any], ClassTarget],
    keep_modes: bool = False,
) -> tuple[list[Seen], bool]:
    """Return the layers with positions, in the order in which they ran, and whether the model's output could be scored.

    A module whose calls form a chain, each using the result of the call before, gives one layer per call ("act#2").
    """
    seen: dict[tuple[int, int], Seen] = {}
    calls: Counter[int] = Counter()
    origins: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            calls[id(module)] += 1
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
            if layout is None and not _may_have_positions(tensor.shape, inputs.size):
                return None
            if is_padding(module, args, tensor):
                return None
            if not tensor.requires_grad:
                # Start a graph here, at the first layer and wherever the model has cut the graph.
                with torch.enable_grad():
                    tensor = tensor.detach().requires_grad_().clone()
            with torch.enable_grad():
                alias = tensor.view_as(tensor)
            _, origin = origins.get(id(tensor), (tensor, tensor))
            origins[id(alias)] = alias, origin
            call = id(module), calls[id(module)]
            seen[call] = own = Seen(name, module, alias, origin, version(tensor), layout or ChannelsFirst(), ())
            own.node, own.is_settled = tensor.grad_fn, layout is not None
            own.hidden = not torch.is_grad_enabled() and _is_in_checkpoint()
            leaves[places[0]] = alias
            return tree_unflatten(leaves, spec)

        return hook

    run = Runner.of(model, inputs.images.device)
    with untouched(model, inputs.images.device, keep_modes), torch.enable_grad():
        with holding_hooks() as attach:
            for name, module in model.named_modules():
                if name:
                    attach.after(module, watch(name))
            output = run(inputs.with_images(inputs.images))
        found = _with_layouts(_calls_named(seen, calls), model, inputs)
        tokens = {(one.tensor.shape[1], one.shape[0]) for one in found if isinstance(one.layout, Tokens)}
        found = [one for one in found if not one.is_split_into_heads(tokens)]
        try:
            target = target if target is not None else target_type(predicted_classes(output))
            scores = score(target, output, inputs.n)
        except GradCamKitError:
            if target is not None:
                with torch.no_grad():
                    score(target, output, inputs.n)  # raises an error, unless the scores only lack a graph
            return found, False  # methods without a target, or without gradients, still need a layer
        total = scores.reshape(len(scores), -1).sum(1)
        inside = [one for one in found if one.tensor.requires_grad]
        dense = any(
            isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim == inputs.images.ndim
            for leaf in tree_leaves(output)
        )
        if total.requires_grad and inside:
            tensors = [one.tensor for one in inside]
            # A head with zero weights, as before training, makes every gradient zero, but NaN passes: 0 * NaN is NaN.
            for start in (1.0, torch.nan):
                [gradients] = differentiate(start * total, tensors, keep=True)
                for one, gradient in zip(inside, gradients, strict=True):
                    one.depends = gradient is not None
                    one.reached = gradient is not None and _reaches(one.layout.to_maps(gradient))
                    if dense and gradient is not None:
                        # If gradients reach no more channels than there are explained classes, this layer already holds
                        # scores per position.
                        counting = (one.layout.to_maps(gradient) != 0).flatten(2).any(2).sum(1)
                        one.is_output = bool((counting <= scores[0].numel()).all())
                if any(one.reached for one in inside):
                    break
        return found, True


def _calls_named(seen: Mapping[tuple[int, int], Seen], calls: Mapping[int, int]) -> list[Seen]:
    """Return all layers, with numbered calls for chains and without modules whose calls are independent."""
    nodes: dict[int, list[Any]] = {}
    for (module, call), one in seen.items():
        if calls[module] > 1:
            one.name = f"{one.name}#{call}"
            nodes.setdefault(module, []).append(one.node)
    chains = {module for module, made in nodes.items() if is_chain(made)}
    return [one for (module, _), one in seen.items() if calls[module] == 1 or module in chains]


def _may_have_positions(shape: Sequence[int], size: Sequence[int]) -> bool:
    return len(shape) == len(size) + 2 or (len(shape) == 3 and max(shape[1:]) > 1)


def _with_layouts(seen: list[Seen], model: nn.Module, inputs: Inputs) -> list[Seen]:
    """Return the layers that have positions of the images, with their layouts."""
    size, evidence = inputs.size, None
    doubtful = [one for one in seen if not one.is_settled and is_in_doubt(one.tensor.shape, size, one.module)]
    squares = all(one.tensor.ndim == len(size) + 2 for one in doubtful)
    if doubtful and squares and _are_convolutional(seen):
        trust_shapes(model, inputs)
    elif doubtful:
        evidence = recall(model, inputs) or gather(model, inputs)
    kept, judged = [], set()
    for one in seen:
        if not one.is_settled:
            shape = tuple(one.tensor.shape)
            verdict = evidence.of(one.module, shape, inputs.n) if evidence else None
            try:
                layout = verdict.layout if verdict else layout_by_shape(shape, size, model, one.name, one.module)
            except ShapeError:
                continue
            if layout is None:
                continue
            one.layout = layout
            if verdict:
                judged.add(id(one))
        one.shape = tuple(one.layout.to_maps(one.tensor).shape[1:])
        if max(one.shape[1:]) > 1:
            kept.append(one)
    return _from_the_image(kept, judged)


def _are_convolutional(seen: list[Seen]) -> bool:
    """Whether no module owns a weight matrix. A matrix acts on the last axis, which then holds the channels."""
    return not any(own.ndim == 2 for one in seen for own in one.module.parameters(recurse=False))


def _from_the_image(seen: list[Seen], judged: Set[int]) -> list[Seen]:
    """Drop tokens whose number merely happens to fit a grid.

    A new grid of tokens is kept if its origin has been traced, or if it was pooled or enlarged by an integer factor
    from the grid of the previous layer. The first grid is always kept.
    """
    kept: list[Seen] = []
    known: set[tuple[int, ...]] = set()
    for one in seen:
        grid = one.shape[1:]
        is_new = isinstance(one.layout, Tokens) and len(grid) > 1 and bool(known) and grid not in known
        if is_new and id(one) not in judged and not is_resized(kept[-1].shape[1:], grid):
            continue
        known.add(grid)
        kept.append(one)
    return kept


def _is_in_checkpoint() -> bool:
    """Whether the current code runs in a reentrant checkpoint, whose inner layers do not receive gradients."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def _reaches(gradients: Float[Tensor, "n k *s"]) -> bool:
    """Whether gradients arrive at more than one position of every sample.

    A single position is typical of a recurrent layer whose last state is read. Every sample has to be reached, because
    the boxes of each image may come from a different level of a feature pyramid.
    """
    return bool(((gradients != 0).any(1).flatten(1).sum(1) > 1).all())

"""Recognize modules whose calls build on each other, and modules that only pad their input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.gradients.backward import behind

_MOST_PLACES = 400


def is_chain(nodes: Sequence[Any]) -> bool:
    """Whether each call of a module depends on the result of the call before, like those of a shared ReLU.

    Independent calls (a head on every level of a pyramid, a tower for two images) are not a chain, because the last
    call is only one of several, and it is unknown which of them the user means.

    Args:
        nodes: nodes of the graph that computed the output of each call; None for a call without a graph.
    """
    return all(before is not None and before in set(behind(after)) for before, after in pairwise(nodes))


def is_padding(module: nn.Module, args: Any, output: Tensor) -> bool:
    """Whether a module only adds positions around its input, so that its output contains the unchanged input."""
    if any(True for _ in module.parameters()):
        return False
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.ndim == output.ndim]
    if len(tensors) != 1 or tensors[0].shape[:2] != output.shape[:2]:
        return False
    before = tensors[0]
    added = [new - old for old, new in zip(before.shape[2:], output.shape[2:], strict=True)]
    # Upsampling by an integer factor at least doubles the number of positions, and is not padding.
    if not any(added) or any(not 0 <= more < old for more, old in zip(added, before.shape[2:], strict=True)):
        return False
    places: list[list[int]] = [list(range(more + 1)) for more in added]
    if prod(map(len, places)) > _MOST_PLACES:
        places = [sorted({0, more // 2, more - more // 2, more}) for more in added]
    for place in product(*places):
        inner = output
        for axis, (start, length) in enumerate(zip(place, before.shape[2:], strict=True), 2):
            inner = inner.narrow(axis, start, length)
        if torch.equal(inner, before):
            return True
    return False

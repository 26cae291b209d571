"""What one module does several times in a pass, and what modules do that only add positions around their input."""

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
    """Whether each call of a module works on what the call before made, as those of a shared activation do.

    Calls beside each other (a head on every level of a pyramid, a tower for two images) are not a chain: the last one
    is then one of several, and nothing says which one is meant.

    Args:
        nodes: of the graph, where the output of each call was made; None where a call has no graph.
    """
    return all(before is not None and before in set(behind(after)) for before, after in pairwise(nodes))


def is_padding(module: nn.Module, args: Any, output: Tensor) -> bool:
    """Whether a module only adds positions around its input: its map is the input's, moved."""
    if any(True for _ in module.parameters()):
        return False
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.ndim == output.ndim]
    if len(tensors) != 1 or tensors[0].shape[:2] != output.shape[:2]:
        return False
    before = tensors[0]
    added = [new - old for old, new in zip(before.shape[2:], output.shape[2:], strict=True)]
    # Enlarging by a factor repeats the values of a small map, and adds at least as many positions as there were.
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

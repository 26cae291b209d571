"""Read batches of loaders as pairs of inputs and labels, and run a model on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.errors import InputError, ShapeError, kind_of

BatchOf = Callable[[Any], Any]
"""Function from an item of a loader to a pair of inputs and labels."""

Pair = tuple[Any, Any]


def pairs_of(loader: Any, batch: BatchOf | None = None, what: str = "loader") -> Iterator[Pair]:
    """Yield the batches of a loader as pairs of inputs and labels.

    Args:
        loader: iterable of batches.
        batch: function that converts an item of the loader to a pair; None = items already are pairs.
        what: name of the loader in error messages.

    Raises:
        InputError: a loader that yields nothing, or items that are not pairs.
        ShapeError: different numbers of inputs and labels.
    """
    if isinstance(loader, Tensor | Mapping | str) or not isinstance(loader, Iterable):
        raise InputError(f"the {what} is {kind_of(loader)}; expected an iterable of batches (images, labels)")
    empty = True
    for item in loader:
        empty = False
        yield read_pair(item if batch is None else batch(item), what if batch is None else "callable batch=")
    if empty:
        raise InputError(f"the {what} yields nothing; expected batches (images, labels)")


def read_pair(item: Any, what: str = "batch") -> Pair:
    """Return the inputs and labels of a batch; arrays and lists of numbers become tensors.

    Raises:
        InputError: an item that is not a pair, or inputs without a tensor.
        ShapeError: different numbers of inputs and labels.
    """
    way_out = "pass batch=lambda item: (images, labels)"
    if isinstance(item, Mapping):
        keys = ", ".join(map(repr, item))
        raise InputError(f"the {what} gives a mapping with keys {keys}; expected (images, labels): {way_out}")
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = f"{len(item)} values" if isinstance(item, tuple | list) else kind_of(item)
        no_labels = " without labels" if isinstance(item, Tensor) else ""
        raise InputError(f"the {what} gives {found}{no_labels}; expected (images, labels): {way_out}")
    inputs, labels = tree_map(_tensor, item[0]), _tensor(item[1])
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise InputError(
            f"the images of the {what} are {kind_of(item[0])}; expected a tensor, or a tuple or mapping of tensors"
        )
    n = samples(inputs)
    if isinstance(labels, Tensor) and labels.ndim and len(labels) != n:
        raise ShapeError(f"the {what} gives {n} images and {len(labels)} labels; expected one label per image")
    return inputs, labels


def main_input(inputs: Any) -> Tensor:
    """Return the main input: the first floating-point tensor with at least 3 axes, else the first tensor."""
    tensors = [leaf for leaf in tree_leaves(_plain(inputs)) if isinstance(leaf, Tensor)]
    images = [leaf for leaf in tensors if leaf.is_floating_point() and leaf.ndim >= 3]
    return (images or tensors)[0]


def samples(inputs: Any) -> int:
    """Return the number of samples in a batch of inputs."""
    tensor = main_input(inputs)
    return len(tensor) if tensor.ndim else 1


def part(tree: Any, index: slice) -> Any:
    """Return a slice of a batch: every tensor whose first axis has one entry per sample is sliced."""
    n = samples(tree)
    return tree_map(lambda leaf: leaf[index] if _has_samples(leaf, n) else leaf, _plain(tree))


def limited(pair: Pair, most: int) -> Pair:
    """Return the first `most` samples of a batch, or all of a smaller batch."""
    inputs, labels = pair
    if samples(inputs) <= most:
        return pair
    n = samples(inputs)
    return part(inputs, slice(most)), labels[:most] if _has_samples(labels, n) else labels


def moved(tree: Any, device: torch.device | None) -> Any:
    """Return the inputs with all tensors moved to a device; None leaves them where they are."""
    if device is None:
        return tree
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, _plain(tree))


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with copies of the inputs: a mapping as keyword arguments, a tuple or list as positional ones."""
    fresh = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, _plain(inputs))
    if isinstance(fresh, Mapping):
        return model(**fresh)
    return model(*fresh) if isinstance(fresh, tuple | list) else model(fresh)


def loss_value(loss: Callable[[Any, Any], Any], output: Any, labels: Any) -> Tensor:
    """Return the loss of an output.

    Raises:
        InputError: the loss is not a tensor with a single number.
    """
    value = loss(output, labels)
    if not isinstance(value, Tensor):
        raise InputError(f"the loss returns {kind_of(value)}; expected a tensor with one number, as torch.nn losses do")
    if value.numel() != 1:
        raise InputError(
            f"the loss has shape {tuple(value.shape)}; expected one number: use reduction='mean', or call .mean()"
        )
    return value.reshape(())


def _plain(tree: Any) -> Any:
    """Convert mappings to dicts, which torch's tree functions support; return other values unchanged."""
    return dict(tree) if isinstance(tree, Mapping) and not isinstance(tree, dict) else tree


def _has_samples(leaf: Any, n: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == n


def _tensor(value: Any) -> Any:
    """Return arrays and flat lists of numbers as tensors; return other values unchanged."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    if isinstance(value, list) and value and all(isinstance(one, int | float) for one in value):
        return torch.tensor(value)
    return value

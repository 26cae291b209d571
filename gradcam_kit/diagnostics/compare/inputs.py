"""Read batches of model inputs from tensors, lists and loaders, with or without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradcam_kit.diagnostics.checks.batches import BatchOf
from gradcam_kit.diagnostics.checks.data import generators_of
from gradcam_kit.diagnostics.checks.preserving import random_states
from gradcam_kit.errors import InputError, kind_of

_WAY_OUT = "pass batch=lambda item: images"


@contextmanager
def loaders_left_as_found(*loaders: object) -> Iterator[None]:
    """Restore global random states, and the random generators of loaders, when the block ends."""
    with random_states(), generators_of(*loaders):
        yield


def inputs_of(
    source: Any, batch: BatchOf | None = None, what: str = "loader", *, batch_size: int = 64
) -> Iterator[Any]:
    """Yield the inputs of all batches; labels are left out.

    Args:
        source: a tensor of all images, which is split into batches, or an iterable of batches, each a tensor or a tuple
            `(images, labels)`.
        batch: function that extracts the images from an item of the loader, for loaders of mappings or longer tuples.
        what: name of the source in error messages.
        batch_size: maximum number of samples in a batch taken from a tensor.

    Raises:
        InputError: a source without images, or an empty one.
    """
    if isinstance(source, np.ndarray) and source.dtype.kind == "f":
        source = torch.from_numpy(source)
    if isinstance(source, Tensor):
        if source.ndim < 2 or not len(source):
            raise InputError(
                f"the {what} is a tensor {tuple(source.shape)}; expected a batch of at least one sample (n, c, ...)"
            )
        yield from source.tensor_split(math.ceil(len(source) / batch_size))
        return
    if isinstance(source, Mapping | str | bytes) or not isinstance(source, Iterable):
        raise InputError(f"the {what} is {kind_of(source)}; expected a tensor of images, or an iterable of batches")
    empty = True
    for item in source:
        empty = False
        yield _images(item if batch is None else batch(item), what, batch)
    if empty:
        raise InputError(f"the {what} yields nothing; expected batches of images")


def _images(item: Any, what: str, batch: BatchOf | None) -> Any:
    what = what if batch is None else "callable batch="
    if isinstance(item, Mapping) and batch is None:
        raise InputError(
            f"the {what} gives a mapping with keys {', '.join(map(repr, item))}; expected images, or (images, labels): "
            f"{_WAY_OUT}"
        )
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise InputError(f"the {what} gives {len(item)} values; expected images, or (images, labels): {_WAY_OUT}")
        item = item[0]
    if isinstance(item, np.ndarray) and item.dtype.kind == "f":
        item = torch.from_numpy(item)
    if not any(
        isinstance(leaf, Tensor) and leaf.ndim
        for leaf in tree_leaves(dict(item) if isinstance(item, Mapping) else item)
    ):
        raise InputError(f"the {what} gives {kind_of(item)}; expected a tensor of images, or (images, labels)")
    return item

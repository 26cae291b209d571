"""Map tensors to their row numbers in a `Places` table, also through other views of the same memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gradcam_kit.capture.provenance.places import compressed

_FLAT = "flat"


class Memory:
    """Row numbers keyed by storage and view rather than by tensor object.

    Autograd may hand out different tensor objects for the same memory.
    """

    def __init__(self) -> None:
        self._known: dict[StorageWeakRef, dict[Any, Tensor]] = {}

    def get(self, tensor: Tensor) -> Tensor | None:
        """Return the row numbers of a tensor, or None if the tensor does not depend on any input."""
        views = self._known.get(StorageWeakRef(tensor.untyped_storage()))
        if not views:
            return None
        found = views.get(_view(tensor))
        if found is None:
            found = compressed(_as(self._flat(tensor, views), tensor))
        return found

    def put(self, tensor: Tensor, ids: Tensor | None, fresh: bool = True) -> None:
        """Store the row numbers of a result. `fresh` tells whether the result has its own memory."""
        key = StorageWeakRef(tensor.untyped_storage())
        if fresh:
            self._known.pop(key, None)
        if ids is not None:
            self._known.setdefault(key, {})[_view(tensor)] = ids

    def write(self, tensor: Tensor, ids: Tensor) -> None:
        """Store the row numbers that an operation wrote in place, for all views of the memory."""
        key = StorageWeakRef(tensor.untyped_storage())
        if _elements(tensor) == tensor.numel():
            self._known[key] = {_view(tensor): ids}
            return
        flat = self._flat(tensor, self._known.get(key, {}))
        _as(flat, tensor).copy_(ids.expand(tensor.shape))
        self._known[key] = {_FLAT: flat}

    def _flat(self, tensor: Tensor, views: dict[Any, Tensor]) -> Tensor:
        if _FLAT in views:
            return views[_FLAT]
        flat = torch.zeros(_elements(tensor), dtype=torch.float64)
        for offset, shape, stride in sorted(views, key=lambda view: torch.Size(view[1]).numel()):
            flat.as_strided(shape, stride, offset).copy_(views[offset, shape, stride].expand(shape))
        return flat


def _view(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _as(flat: Tensor, tensor: Tensor) -> Tensor:
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

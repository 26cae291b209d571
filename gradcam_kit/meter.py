"""Measure the cost of some work: time, arithmetic and memory, observed from its tensor operations."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper


@dataclass(frozen=True)
class Cost:
    """The cost of a piece of work.

    Attributes:
        seconds: time from start to end, with the device synchronized.
        flops: floating-point operations in convolutions, matrix products and attention.
        peak_bytes: peak memory, during the work, of the tensors created since the meter was entered.
    """

    seconds: float
    flops: int
    peak_bytes: int


class Meter(TorchDispatchMode):
    """Measures the work inside its `with` block; `lap` returns the cost since the previous lap.

    Statistics of the allocator are not reset, so that other measurements are not disturbed.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self._flops = self._live = self._peak = 0
        self._start = self._now()

    def lap(self) -> Cost:
        """Return the cost since the previous lap, or since the meter was created."""
        now = self._now()
        cost = Cost(now - self._start, self._flops, self._peak)
        self._flops, self._peak, self._start = 0, self._live, self._now()
        return cost

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation would load the compiler, which takes seconds

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        result = function(*args, **kwargs)
        formula: Callable[..., int] | None = _FORMULAS.get(function.overloadpacket)
        if formula is not None:
            self._flops += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if _is_plain(leaf) and leaf.untyped_storage().data_ptr() not in known:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._live += size
        self._peak = max(self._peak, self._live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._live -= size

    def _now(self) -> float:
        if self.device.type not in ("cpu", "meta"):
            torch.get_device_module(self.device).synchronize(self.device)
        return time.perf_counter()


def _packed_convolution(
    maps: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Count the operations of a convolution from its shapes: two per weight at each output position of each sample."""
    return 2 * math.prod(out_shape) // out_shape[1] * math.prod(weight)


PACKED: dict[Any, Callable[..., int]] = {}
"""Formulas for convolutions with packed weights, which `FlopCounterMode` lacks; pass them as its `custom_mapping`."""
if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    PACKED[torch.ops.mkldnn._convolution_pointwise] = _packed_convolution
_FORMULAS = {**flop_registry, **{operation: shape_wrapper(formula) for operation, formula in PACKED.items()}}


def _is_plain(leaf: object) -> bool:
    """Whether a tensor has ordinary storage; subclasses may have none, and accessing it would raise."""
    return type(leaf) in (Tensor, nn.Parameter) and leaf.layout == torch.strided  # type: ignore[attr-defined]

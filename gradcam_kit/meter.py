"""What a piece of work costs: time, arithmetic and memory, seen from the tensor operations that it makes."""

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
    """What some work cost.

    Attributes:
        seconds: from its begin to its end, the device waited for.
        flops: floating point operations in convolutions, matrix products and attention.
        peak_bytes: the most that tensors made while metering held at once during the work.
    """

    seconds: float
    flops: int
    peak_bytes: int


class Meter(TorchDispatchMode):
    """Counts what is done inside of its `with` block; `lap` tells the cost since the last lap.

    No allocator's statistics are reset, so that measurements of others go on undisturbed.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self._flops = self._live = self._peak = 0
        self._start = self._now()

    def lap(self) -> Cost:
        """Return the cost since the last lap, or since the meter was made."""
        now = self._now()
        cost = Cost(now - self._start, self._flops, self._peak)
        self._flops, self._peak, self._start = 0, self._live, self._now()
        return cost

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation would load the compiler, which takes seconds

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
    """From shapes: two for each weight of each value that comes out."""
    return 2 * math.prod(out_shape) // out_shape[1] * math.prod(weight)


PACKED: dict[Any, Callable[..., int]] = {}
"""What torch does not count: convolutions that run with packed weights; for its counter's `custom_mapping`."""
if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    PACKED[torch.ops.mkldnn._convolution_pointwise] = _packed_convolution
_FORMULAS = {**flop_registry, **{operation: shape_wrapper(formula) for operation, formula in PACKED.items()}}


def _is_plain(leaf: object) -> bool:
    """Whether a tensor has memory of its own kind: subclasses may have none, and asking for it would be an error."""
    return type(leaf) in (Tensor, nn.Parameter) and leaf.layout == torch.strided  # type: ignore[attr-defined]

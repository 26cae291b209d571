"""Silent garbage made loud: conditions that are computed on the device and read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor


def on_host(tensor: Tensor) -> Tensor:
    """The values where Python can read them; on CUDA this waits for the work of this stream alone."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    event.synchronize()
    return host


@dataclass
class Checks:
    """Collects conditions that are read once; a call without errors waits for the device only there."""

    pending: list[tuple[Bool[Tensor, " n"], Callable[[int], Exception | None]]] = field(default_factory=list)

    def add(self, bad: Bool[Tensor, " n"], error: Callable[[int], Exception | None]) -> None:
        """Remember a condition per sample, and the error of a sample where it holds; None for a false alarm."""
        if bad.numel():
            self.pending.append((bad, error))

    def raise_first(self) -> None:
        """Raise the error of the first condition that holds, in the order in which they were added."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        device = pending[0][0].device
        # A model may be spread over several devices; their conditions meet on the first one.
        bad = torch.cat([condition.to(device, non_blocking=True) for condition, _ in pending])
        host = on_host(bad)
        if not host.any():
            return
        for part, (_, error) in zip(host.split([len(c) for c, _ in pending]), pending, strict=True):
            for sample in part.nonzero().flatten().tolist():
                found = error(sample)
                if found is not None:
                    raise found

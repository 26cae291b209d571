"""Scalars that are copied to the host once per step, and histograms and features that stay on the device longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradcam_kit.diagnostics.maths.histogram import BINS, add_counts

_MOST_PLACES = 4
_BLOCK = 16


@dataclass(eq=False)
class Scalars:
    """Pending scalars of one device, with the functions that receive them on the host."""

    device: torch.device
    tensors: list[Tensor] = field(default_factory=list)
    readers: list[tuple[Callable[..., None], int]] = field(default_factory=list)

    def add(self, reader: Callable[..., None], *scalars: Tensor) -> None:
        """Register a function that is called with these scalars as floats, once they are on the host."""
        self.tensors.extend(scalars)
        self.readers.append((reader, len(scalars)))

    def flush(self) -> Copied | None:
        """Return a copy of the pending scalars that is on its way to the host; None if there are none."""
        if not self.tensors:
            return None
        wide = torch.float64 if self.device.type != "mps" else torch.float32
        stacked = torch.stack([tensor.to(wide) for tensor in self.tensors])
        copied = Copied(self.readers, stacked)
        self.tensors, self.readers = [], []
        return copied


class Copied:
    """Scalars that are being copied to the host."""

    def __init__(self, readers: list[tuple[Callable[..., None], int]], stacked: Tensor) -> None:
        self.readers = readers
        self.event: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self.host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self.host.copy_(stacked, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(stacked.device))
        else:
            self.host = stacked.to("cpu")

    def read(self) -> None:
        """Wait for the copy and pass the numbers to the readers."""
        if self.event is not None:
            self.event.synchronize()
        values = iter(self.host.tolist())
        for reader, count in self.readers:
            reader(*(next(values) for _ in range(count)))


@dataclass(eq=False)
class Histograms:
    """Histograms of all layers on one device, one row each; samples of a step are counted together."""

    device: torch.device
    counts: Tensor = field(init=False)
    rows: list[int] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    used: int = 0
    _places: dict[tuple[tuple[int, int], ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = self._more()

    def _more(self) -> Tensor:
        with torch.inference_mode(False):
            return torch.zeros(_BLOCK, BINS, dtype=torch.int64, device=self.device)

    def new_row(self) -> int:
        """Reserve a row."""
        self.used += 1
        if self.used > len(self.counts):
            with torch.inference_mode(False):
                self.counts = torch.cat([self.counts, self._more()])
        return self.used - 1

    def add(self, row: int, sample: Tensor) -> None:
        """Queue a sample, which `flush` counts in its row."""
        self.rows.append(row)
        self.samples.append(sample)

    def flush(self) -> None:
        """Count the pending samples."""
        if not self.samples:
            return
        key = tuple((row, len(sample)) for row, sample in zip(self.rows, self.samples, strict=True))
        places = self._places.get(key)
        if places is None:
            places = torch.tensor(key).T.contiguous().to(self.device, non_blocking=True)
            if len(self._places) >= _MOST_PLACES:  # lengths may never repeat, so the cache is bounded
                self._places.clear()
            self._places[key] = places
        # The row index of each value would take more memory than the histograms, so only lengths are cached.
        index = torch.repeat_interleave(places[0], places[1], output_size=sum(size for _, size in key))
        add_counts(self.counts, index, torch.cat([sample.float() for sample in self.samples]))
        self.rows, self.samples = [], []


@dataclass(eq=False)
class Reservoir:
    """Pooled outputs of a few samples of a window, chosen uniformly at random without using a global random state.

    At most `size` rows of at most `most` units, the same units in every row, are kept on the device.
    """

    units: int
    size: int = 256
    most: int = 1024
    seen: int = 0
    rows: Tensor | None = None
    state: int = 1

    def add(self, pooled: Tensor) -> None:
        """Offer the samples `(n, k)` of one call to the reservoir."""
        if pooled.shape[1] > self.most:
            step = pooled.shape[1] / self.most
            chosen = [int(i * step) for i in range(self.most)]
            pooled = pooled[:, torch.tensor(chosen).to(pooled.device, non_blocking=True)]
        if self.rows is None:
            self.rows = torch.empty(self.size, pooled.shape[1], dtype=pooled.dtype, device=pooled.device)
        places, sources = self._places(len(pooled))
        if places:
            both = torch.tensor([places, sources]).to(pooled.device, non_blocking=True)
            self.rows.index_copy_(0, both[0], pooled[both[1]])

    def _places(self, n: int) -> tuple[list[int], list[int]]:
        """Return slots and the samples to store in them, by algorithm R (Vitter, 1985)."""
        chosen: dict[int, int] = {}
        for sample in range(n):
            at = self.seen
            if at >= self.size:
                self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
                at = (self.state >> 33) % (self.seen + 1)
            if at < self.size:
                chosen[at] = sample
            self.seen += 1
        return list(chosen), list(chosen.values())

    def take(self) -> Tensor | None:
        """Return the rows, and clear the reservoir."""
        rows = None if self.rows is None else self.rows[: min(self.seen, self.size)]
        self.rows, self.seen = None, 0
        return rows

    def peek(self) -> Tensor | None:
        """Return the rows, and keep them."""
        return None if self.rows is None else self.rows[: min(self.seen, self.size)]

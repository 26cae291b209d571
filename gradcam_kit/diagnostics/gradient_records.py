"""Record the norms of the gradients at outputs and parameters, measured on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradcam_kit.capture import local_part, shard_of
from gradcam_kit.errors import CaptureError, UnknownNameError, did_you_mean


@dataclass(eq=False)
class GradientRecord:
    """The gradients that arrived at one output, or the `.grad` of one parameter after each backward pass.

    Attributes:
        shape: shape of the last gradient, or of the part of it that was measured.
        local: whether gradients are spread over processes (`fully_shard`), and only the local parts were measured.
    """

    shape: tuple[int, ...] = ()
    local: bool = False
    _norms: list[Tensor] = field(default_factory=list, repr=False)
    _largest: list[Tensor] = field(default_factory=list, repr=False)

    def add(self, gradient: Tensor) -> None:
        """Measure a gradient on its device, without synchronization."""
        own = local_part(gradient.detach())
        self.local = self.local or shard_of(gradient) is not None
        self.shape = tuple(own.shape)
        wide = own if own.dtype == torch.float64 else own.float()
        self._norms.append(torch.linalg.vector_norm(wide))
        self._largest.append(torch.linalg.vector_norm(wide, torch.inf) if wide.numel() else wide.new_zeros(()))

    @property
    def norms(self) -> list[float]:
        """Euclidean norm of each gradient, in the order of arrival."""
        return torch.stack(self._norms).tolist() if self._norms else []

    @property
    def norm(self) -> float:
        """Norm of the last gradient; NaN if none has arrived."""
        return self.norms[-1] if self._norms else math.nan

    @property
    def rms(self) -> float:
        """Norm of the last gradient divided by the square root of the number of its values."""
        return self.norm / math.sqrt(max(math.prod(self.shape), 1))

    @property
    def largest(self) -> float:
        """Largest magnitude in the last gradient; NaN if none has arrived."""
        return float(self._largest[-1]) if self._largest else math.nan

    @property
    def calls(self) -> int:
        """The number of gradients that arrived."""
        return len(self._norms)


class GradientRecords(Mapping[str, GradientRecord]):
    """The gradients that arrived, by the name of the layer (for its output) or parameter, in the order of arrival.

    Attributes:
        parameters: names of the watched parameters.
        names: names of the watched layers and parameters.
        records: name -> record; a name is added when its first gradient arrives.
    """

    def __init__(self, layers: Iterable[str], parameters: Iterable[str]) -> None:
        self.parameters = frozenset(parameters)
        self.names = (*layers, *self.parameters)
        self.records: dict[str, GradientRecord] = {}

    def record(self, name: str) -> GradientRecord:
        """Return the record of a name, which is created on first use."""
        return self.records.setdefault(name, GradientRecord())

    def __getitem__(self, name: str) -> GradientRecord:
        if name not in self.records:
            if name in self.names:
                raise CaptureError(
                    f"no gradient arrived at {name!r}; run the backward pass inside the block, and, for the outputs "
                    "of layers, the forward pass too"
                )
            raise UnknownNameError(
                f"{name!r} is not one of the watched layers and parameters, which `.names` lists"
                f"{did_you_mean(name, self.names)}"
            )
        return self.records[name]

    def __contains__(self, name: object) -> bool:
        return name in self.records

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def total_norm(self) -> float:
        """The joint norm of the last gradients of all watched parameters; sharded ones contribute only local parts."""
        return math.sqrt(sum(own.norm**2 for name, own in self.records.items() if name in self.parameters))

"""Collect statistics and a random subset of the features of a data set, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.diagnostics.checks.batches import samples
from gradcam_kit.diagnostics.compare.reading import FeatureReader
from gradcam_kit.errors import ShapeError


@dataclass
class Units:
    """Mean and sum of squared deviations of each unit, merged over batches (Chan, Golub & LeVeque, 1979)."""

    n: int
    mean: Float[Tensor, " k"]
    m2: Float[Tensor, " k"]

    def merge(self, features: Float[Tensor, "n k"]) -> None:
        """Add the float64 features of a batch."""
        n, mean = len(features), features.mean(0)
        m2 = (features - mean).square().sum(0)
        total, delta = self.n + n, mean - self.mean
        self.mean = self.mean + delta * n / total
        self.m2 = self.m2 + m2 + delta.square() * self.n * n / total
        self.n = total

    @property
    def variance(self) -> Float[Tensor, " k"]:
        """The variance, with the divisor n."""
        return self.m2 / self.n


class FeatureSet:
    """Features of one data set: mean and variance over all samples, and a uniform random subset of the samples."""

    def __init__(self, what: str, most: int, generator: np.random.Generator) -> None:
        self.what, self.most, self.generator = what, most, generator
        self.n = 0
        self.units: dict[str, Units] = {}
        self.kept: dict[str, list[Tensor]] = {}

    def add(self, reader: FeatureReader, inputs: Any) -> None:
        """Run the model on a batch, and add its features."""
        n = samples(inputs)
        places = self._places(n)
        for name, features in reader(inputs).items():
            wide = features.double()
            if name not in self.units:
                self.units[name] = Units(0, torch.zeros_like(wide[0]), torch.zeros_like(wide[0]))
            elif len(self.units[name].mean) != wide.shape[1]:
                raise ShapeError(
                    f"layer {name!r} has {len(self.units[name].mean)} units for one batch of the {self.what} and "
                    f"{wide.shape[1]} for another; use images of one size, or select other layers"
                )
            self.units[name].merge(wide)
            kept = self.kept.setdefault(name, [])
            for row, place in zip(wide, places, strict=True):
                if place == len(kept):
                    kept.append(row)
                elif place is not None and place < len(kept):
                    kept[place] = row
        self.n += n

    def drawn(self, name: str) -> Float[Tensor, "m k"]:
        """Return the features of the random subset of samples."""
        return torch.stack(self.kept[name])

    def _places(self, n: int) -> list[int | None]:
        """Return the slot of each sample in the reservoir (Vitter, 1985), the same for all layers; None = not kept."""
        found: list[int | None] = []
        for seen in range(self.n, self.n + n):
            place = seen if seen < self.most else int(self.generator.integers(seen + 1))
            found.append(place if place < self.most else None)
        return found

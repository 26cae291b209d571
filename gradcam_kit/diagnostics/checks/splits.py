"""Collect statistics of a data set and a small fingerprint of each picture, without keeping the pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

THUMBNAIL = 32
"""Height and width of the compared thumbnails, in pixels."""
HASHED = 8
_COMPARED = 20_000  # number of pictures of a data set after which no more are compared for near duplicates; 6 kB each
_FLAT = 1e-6  # maximum range of a constant picture, as a share of its largest value


@dataclass
class Channels:
    """Statistics of each channel over all samples and positions, in float64.

    Attributes:
        count: number of values per channel.
        total: sum of the values of each channel.
        squares: sum of the squared values of each channel.
        low: smallest value of each channel.
        high: largest value of each channel.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    squares: Tensor = field(default_factory=lambda: torch.zeros(0))
    low: Tensor = field(default_factory=lambda: torch.zeros(0))
    high: Tensor = field(default_factory=lambda: torch.zeros(0))

    def add(self, images: Float[Tensor, "n c *t"]) -> None:
        """Add a batch without NaN; batches with a different number of channels are ignored."""
        values = images.detach().to("cpu", torch.float64).movedim(1, 0).flatten(1)
        if not values.numel():
            return
        found = values.sum(1), values.square().sum(1), values.amin(1), values.amax(1)
        if self.count == 0:
            self.total, self.squares, self.low, self.high = found
        elif len(self.total) == len(values):
            self.total, self.squares = self.total + found[0], self.squares + found[1]
            self.low, self.high = torch.minimum(self.low, found[2]), torch.maximum(self.high, found[3])
        else:
            return
        self.count += values.shape[1]

    @property
    def mean(self) -> Tensor:
        """The mean of each channel."""
        return self.total / max(1, self.count)

    @property
    def std(self) -> Tensor:
        """The standard deviation of each channel."""
        return (self.squares / max(1, self.count) - self.mean.square()).clamp(min=0).sqrt()


@dataclass
class Split:
    """Statistics and fingerprints of one data set.

    Attributes:
        title: name of the data set in messages; "" if it is the only one.
        names: names of the samples in messages.
        labels: a number or a name for each sample; None for unlabeled samples.
        digests: a hash of the pixels of each sample.
        prints: centered thumbnails of the first pictures, of norm 1 in float16; zeros for constant pictures.
        hashes: average hashes of the same pictures; see `prints_of`.
        broken: names of samples with NaN or infinite values.
        constant: names of samples whose values are all the same.
        dtypes: dtype of the inputs -> number of samples.
        channels: statistics of the channels, for inputs `(n, c, h, w)`.
        has_pictures: whether the inputs are pictures, so that duplicates can be searched for.
    """

    title: str = ""
    names: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    prints: list[Tensor] = field(default_factory=list)
    hashes: list[Tensor] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    channels: Channels = field(default_factory=Channels)
    has_pictures: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def add(self, images: Tensor, labels: Sequence[Any], names: Sequence[str], pictures: Tensor | None = None) -> None:
        """Add samples.

        Args:
            images: inputs of the model, with samples along axis 0.
            labels: one label per sample.
            names: one name per sample.
            pictures: pictures in which to search for duplicates, `(n, c, h, w)`; None = the images.
        """
        self.dtypes[str(images.dtype).removeprefix("torch.")] += len(images)
        wide = images.detach().cpu()
        flat = wide.reshape(len(wide), -1).float()
        finite = flat.isfinite().all(dim=1)
        self.names += names
        self.labels += labels
        self.broken += [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
        if images.ndim >= 3 and flat.numel():
            spread = flat.amax(dim=1) - flat.amin(dim=1)
            is_constant = (spread <= _FLAT * flat.abs().amax(dim=1)) & finite
            self.constant += [name for name, same in zip(names, is_constant.tolist(), strict=True) if same]
            if images.ndim == 4 and not images.is_complex():
                self.channels.add(wide[finite].float())
        compared = wide if pictures is None else pictures
        if compared.ndim >= 3:
            self.add_prints(compared)

    def add_prints(self, pictures: Tensor) -> None:
        """Add the fingerprints of pictures."""
        for picture in pictures:
            self.digests.append(digest_of(picture))
        if pictures.ndim == 4 and min(pictures.shape[2:]) >= HASHED:
            self.has_pictures = True
            if len(self.prints) < _COMPARED:
                prints, hashes = prints_of(pictures.float().nan_to_num())
                self.prints += prints.half().unbind()
                self.hashes += hashes.unbind()


def digest_of(picture: Tensor) -> bytes:
    """Return a hash of the values, dtype and shape of a picture."""
    values = picture.contiguous().reshape(-1)
    digest = hashlib.sha1(f"{values.dtype}{tuple(picture.shape)}".encode(), usedforsecurity=False)
    digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.digest()


def prints_of(pictures: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n 64"]]:
    """Return centered thumbnails of norm 1, and average hashes: which of 8 x 8 cells are brighter than the mean."""
    small = adaptive_avg_pool2d(pictures, THUMBNAIL)
    cells = adaptive_avg_pool2d(small.mean(dim=1, keepdim=True), HASHED).flatten(1)
    flat = small.flatten(1)
    centered = flat - flat.mean(dim=1, keepdim=True)
    norms = centered.norm(dim=1, keepdim=True)
    is_flat = norms <= _FLAT * flat.norm(dim=1, keepdim=True)
    return centered / norms.masked_fill(is_flat, torch.inf), cells > cells.mean(dim=1, keepdim=True)

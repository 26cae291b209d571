"""Draw images of disks from a seed: a disk's class is the direction and wavelength of its grating; others are plain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 64
CLASSES = 8
SIZES = {"small": (0.018, 0.03), "medium": (0.05, 0.08), "large": (0.12, 0.2)}
"""Smallest and largest share of the image that a disk covers, as in the images of the demo."""

_WAVELENGTHS = (4.0, 8.0)
_PLAIN = 3
_APART = 4
"""Minimum distance in pixels between two disks with a grating."""

_Y, _X = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")


@dataclass(frozen=True)
class Picture:
    """A picture with one or more objects: `image` `(3, h, w)`, and the class and mask of each object."""

    image: Tensor
    labels: tuple[int, ...]
    masks: tuple[Tensor, ...]


def draw(seed: int, sizes: Sequence[str], labels: Sequence[int]) -> Picture:
    """Draw disks of these sizes and classes, which do not touch, on noise and plain disks."""
    generator = torch.Generator().manual_seed(seed)
    canvas = interpolate(0.6 * torch.randn(1, 3, 5, 5, generator=generator), SIDE, mode="bicubic")[0]
    canvas = canvas + 0.2 * torch.randn(3, SIDE, SIDE, generator=generator)
    for _ in range(_PLAIN):
        radius, (x, y) = 3 + 7 * _uniform(generator), SIDE * torch.rand(2, generator=generator)
        canvas = torch.where(_disk(float(x), float(y), radius), torch.randn(3, 1, 1, generator=generator), canvas)
    placed: list[tuple[float, float, float]] = []
    masks = []
    for size, label in zip(sizes, labels, strict=True):
        low, high = SIZES[size]
        radius = SIDE * math.sqrt((low + (high - low) * _uniform(generator)) / math.pi)
        x, y = _place(generator, radius, placed)
        placed.append((x, y, radius))
        masks.append(_disk(x, y, radius))
        canvas = torch.where(masks[-1], _grating(generator, label), canvas)
    return Picture(canvas, tuple(labels), tuple(masks))


def lessons(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return training images, with all sizes and classes in nearly equal parts, and their classes."""
    sizes = list(SIZES)
    labels = [number % CLASSES for number in range(n)]
    pictures = [draw(seed + number, [sizes[number // CLASSES % 3]], [label]) for number, label in enumerate(labels)]
    return torch.stack([one.image for one in pictures]), torch.tensor(labels)


def _grating(generator: torch.Generator, label: int) -> Tensor:
    """Return light and dark stripes with the direction and wavelength of a class."""
    angle, wavelength = math.pi / 4 * (label % 4), _WAVELENGTHS[label // 4]
    phase = 2 * math.pi * _uniform(generator)
    waves = torch.cos(2 * math.pi / wavelength * (_X * math.cos(angle) + _Y * math.sin(angle)) + phase)
    return 0.3 * torch.randn(3, 1, 1, generator=generator) + waves * (
        0.7 + 0.6 * torch.rand(3, 1, 1, generator=generator)
    )


def _place(
    generator: torch.Generator, radius: float, placed: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """Return a random center for which the disk lies inside the image and apart from those already placed."""
    while True:
        x, y = ((radius + 1) + (SIDE - 3 - 2 * radius) * torch.rand(2, generator=generator)).tolist()
        if all(math.hypot(x - x2, y - y2) > radius + other + _APART for x2, y2, other in placed):
            return x, y


def _disk(x: float, y: float, radius: float) -> Tensor:
    return (_X - x) ** 2 + (_Y - y) ** 2 <= radius**2


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))

"""Planted faults 28 to 31: data that is shifted, leaked, scaled wrongly or labeled wrongly."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.faults.fault import fault
from benchmarks.faults.networks import CLASSES, images, labels, network
from gradcam_kit.demo import draw
from gradcam_kit.diagnostics import Finding, check_data, check_output, compare_data

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def colored(n: int, seed: int, brightness: float = 0.0) -> Tensor:
    """Return noisy images, each with a random mean color."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randn(n, 3, 1, 1, generator=generator)
    return 0.5 * colors + torch.randn(n, 3, 12, 12, generator=generator) + brightness


def shapes(first: int, n: int, quality: int | None = None) -> Tensor:
    """Return generated images of the demo in [0, 1], recompressed as JPEG if a quality is given."""
    pictures = [draw(first + i).picture for i in range(n)]
    if quality is not None:
        pictures = [recompressed(picture, quality) for picture in pictures]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def recompressed(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def normalized(pixels: Tensor) -> Tensor:
    return (pixels - MEAN) / STD


@fault(28, "the test set is brighter by one standard deviation", tool="compare_data", says=("warn", "shift", "1"))
def shifted(planted: bool) -> list[Finding]:
    found = compare_data(network(), colored(48, 0), colored(32, 1, brightness=1.0 if planted else 0.0))
    return list(found.findings)


def _leaked(planted: bool, quality: int | None) -> list[Finding]:
    held = [shapes(100, 6), shapes(4, 2, quality) if planted else shapes(110, 2)]
    train = [(normalized(shapes(0, 20)), torch.ones(20))]
    return check_data(train, [(normalized(torch.cat(held)), torch.ones(8))])


@fault(29, "pictures of the training set are in the test set", tool="check_data", says=("bad", "leak", ""))
def leaked(planted: bool) -> list[Finding]:
    return _leaked(planted, None)


@fault(29, "they are, recompressed as JPEG of quality 60", tool="check_data", says=("bad", "leak", ""))
def leaked_as_jpeg(planted: bool) -> list[Finding]:
    return _leaked(planted, 60)


def _scaled(pixels: Tensor) -> list[Finding]:
    return check_data([(pixels, labels(16))])


@fault(30, "pixels from 0 to 255", tool="check_data", says=("bad", "range", ""))
def not_scaled(planted: bool) -> list[Finding]:
    pixels = shapes(0, 16)
    return _scaled(255 * pixels if planted else normalized(pixels))


@fault(30, "not normalized", tool="check_data", says=("warn", "normalization", ""))
def not_normalized(planted: bool) -> list[Finding]:
    pixels = shapes(0, 16)
    return _scaled(pixels if planted else normalized(pixels))


@fault(30, "normalized twice", tool="check_data", says=("bad", "normalization", ""))
def normalized_twice(planted: bool) -> list[Finding]:
    pixels = shapes(0, 16)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 1
    return _scaled(normalized(normalized(pixels)) if planted else normalized(pixels))


@fault(31, "labels are off by one", tool="check_output", says=("bad", "label-range", ""))
def off_by_one(planted: bool) -> list[Finding]:
    return check_output(network().eval(), (images(), labels() + planted))


@fault(31, "labels are off by one", tool="check_data", says=("bad", "label-range", ""))
def off_by_one_in_data(planted: bool) -> list[Finding]:
    return check_data([(images(), labels() + planted)], classes=CLASSES)

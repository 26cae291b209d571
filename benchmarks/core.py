"""Time weighting, normalization, upsampling and rendering at several sizes, compared with a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.measure import Work
from benchmarks.options import Device, Out, Quick, Threads, device_of
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED
from gradcam_kit.functional import normalize, upsample, weighted_sum
from gradcam_kit.render import colorize, overlays

LAYERS = ((1, 2048, 7), (16, 512, 7), (16, 2048, 7), (16, 1024, 14), (16, 512, 28), (16, 256, 56), (64, 2048, 7))
"""Number of images, channels, and rows (= columns) of a layer: the last stage of ResNet-18, and stages of ResNet-50."""

MAPS = ((1, 7, 224), (16, 7, 224), (16, 14, 224), (16, 56, 224), (64, 7, 224), (512, 7, 224), (16, 14, 518))
"""Number of maps, side of the maps, side of the images. For ResNet-18, Score-CAM has 512 masks per image."""


def run(
    device: Device = "auto",
    seconds: Annotated[float, typer.Option(help="seconds for which each work is repeated")] = 0.4,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Time the arithmetic alone; `ratio` is relative to a copy of as many bytes, the limit set by memory bandwidth."""
    device = device_of(device)
    layers, maps = (((1, 64, 7),), ((1, 7, 56),)) if quick else (LAYERS, MAPS)
    seconds = 0.001 if quick else seconds
    rows = chain(_rows(layer_works, layers, device, seconds), _rows(map_works, maps, device, seconds))
    record("core", device, rows, threads=threads, out=out, quick=quick, seed=SEED, seconds=seconds)


Case = dict[str, str | int]
Works = dict[str, tuple[Work, int]]
"""Name -> a work and the number of bytes that it has to read and write."""

Build = Callable[..., tuple[str, Works]]
"""Function from a device and a size to a name for the size and its works."""


def layer_works(device: str, n: int, k: int, side: int) -> tuple[str, Works]:
    """Return a name for the size, and the operations to time for it: those at the resolution of the layer."""
    activations, gradients = _noise(device, n, k, side, side), _noise(device, n, k, side, side)
    by_channel = _noise(device, n, k, 1, 1)
    maps = _noise(device, n, side, side)
    works: Works = {
        "channel weights": (lambda: gradients.mean((2, 3)), _bytes(gradients)),
        "weighted sum by channel": (lambda: weighted_sum(activations, by_channel), _bytes(activations, maps)),
        "weighted sum by position": (
            lambda: weighted_sum(activations, gradients),
            _bytes(activations, gradients, maps),
        ),
        "normalize channels": (
            lambda: normalize(activations.flatten(0, 1)),
            _bytes(activations, activations),
        ),
    }
    return f"{n} x {k} x {side} x {side}", works


def map_works(device: str, n: int, side: int, size: int) -> tuple[str, Works]:
    """Return a name for the size, and the operations to time for it: from the layer's maps to heatmaps and overlays."""
    maps, heatmaps = _noise(device, n, side, side), _noise(device, n, size, size)
    pictures = (255 * _noise(device, n, size, size, 3)).to(torch.uint8)
    works: Works = {
        "upsample": (lambda: upsample(maps, (size, size)), _bytes(maps, heatmaps)),
        "normalize heatmaps": (lambda: normalize(heatmaps), _bytes(heatmaps, heatmaps)),
        "colorize": (lambda: colorize(heatmaps), _bytes(heatmaps, pictures)),
        "overlays": (lambda: overlays(pictures, maps), _bytes(maps, pictures, pictures)),
    }
    if device == "cpu":
        works["overlays with plain OpenCV"] = (lambda: _plain(pictures, maps), _bytes(maps, pictures, pictures))
    return f"{n} x {side} x {side} to {size} x {size}", works


def _plain(pictures: Tensor, maps: Tensor) -> None:
    """Overlay each heatmap with a few calls of OpenCV, as one would write it by hand."""
    for picture, heatmap in zip(pictures.numpy(), maps.numpy(), strict=True):
        levels = (255 * cv2.resize(heatmap, picture.shape[1::-1])).astype(np.uint8)
        cv2.addWeighted(picture, 0.5, cv2.applyColorMap(levels, cv2.COLORMAP_JET), 0.5, 0)


def _noise(device: str, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(SEED)).to(device)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _rows(build: Build, sizes: Sequence[tuple[int, ...]], device: str, seconds: float) -> Iterator[Row]:
    for size in sizes:
        case: Case = {"size": " x ".join(map(str, size)), "device": device}
        yield from attempt(case, partial(_of_size, build, size, device, seconds))


def _of_size(build: Build, size: tuple[int, ...], device: str, seconds: float) -> Iterator[Row]:
    name, works = build(device, *size)
    for work, (call, moved) in works.items():
        case: Case = {"work": work, "size": name, "device": device}
        yield from attempt(case, partial(_row, case, call, moved, seconds))


def _row(case: Case, call: Work, moved: int, seconds: float) -> list[Row]:
    return [Row(case, _compared(call, moved, str(case["device"]), seconds), beside="a copy of as many bytes")]


def _compared(call: Work, moved: int, device: str, seconds: float) -> dict[str, Figure]:
    """Time a work and a copy of as many bytes in alternation."""
    from torch.utils.benchmark import Timer  # imported late: it searches for compilers and prints warnings

    source = torch.zeros(max(1, moved // 8), device=device)  # a copy moves each 4-byte number twice: a read and a write
    sink = torch.empty_like(source)

    def copy() -> None:
        sink.copy_(source)

    times: dict[Work, list[float]] = {copy: [], call: []}
    for work in (copy, call, copy, call):
        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        times[work] += timer.blocked_autorange(min_run_time=seconds / 2).times
    floor, own = Figure.of(times[copy]), Figure.of(times[call])
    return {
        "microseconds": Figure(*(1e6 * value for value in (own.median, own.low, own.high))),
        "ratio": Figure(own.median / floor.median, own.low / floor.median, own.high / floor.median),
        "gb_per_s": Figure(*(moved / value / 1e9 for value in (own.median, own.high, own.low))),
        "copy_gb_per_s": Figure(*(moved / value / 1e9 for value in (floor.median, floor.high, floor.low))),
    }

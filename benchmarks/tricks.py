"""Measure the speedup of single optimizations, such as kernels private to torch, by switching them off in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import gradcam_kit
from benchmarks.measure import Work, interleave
from benchmarks.options import Device, Out, Quick, Rounds, Threads, device_of
from benchmarks.ratios import row
from benchmarks.results import Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit.capture.deferred_checks import Checks
from gradcam_kit.capture.model import memory_format
from gradcam_kit.capture.rerun.lazy_rows import LazyRows
from gradcam_kit.methods.arithmetic import components

Off = Callable[[], AbstractContextManager[object]]


def run(
    device: Device = "auto", rounds: Rounds = 5, threads: Threads = 2, out: Out = None, quick: Quick = False
) -> None:
    """Measure the speedup of single optimizations, such as kernels private to torch."""
    device = device_of(device)
    if quick:
        rounds = 1
    rows = chain.from_iterable(
        attempt({"model": model, "work": trick}, partial(_rows, model, trick, off, work, device, rounds))
        for model, trick, off, work in _tricks(device, quick)
    )
    record("tricks", device, rows, threads=threads, out=out, quick=quick, seed=SEED, rounds=rounds)


def _tricks(device: str, quick: bool) -> Iterator[tuple[str, str, Off, Callable[[nn.Module], Work]]]:
    side, channels = (64, 8) if quick else (224, 64)
    image, batch = build_images(1, device, side=side), build_images(2 if quick else 8, device, side=side)

    def of(make: Callable[[nn.Module], gradcam_kit.BaseCAM], images: torch.Tensor) -> Callable[[nn.Module], Work]:
        def work(model: nn.Module) -> Work:
            cam = make(model)
            return lambda: cam(images)

        return work

    score_cam = of(lambda model: gradcam_kit.ScoreCAM(model, "layer4", channels=channels), image)
    grad_cam = of(lambda model: gradcam_kit.GradCAM(model, "layer4"), batch)
    ablation = of(lambda model: gradcam_kit.AblationCAM(model, "layer3", channels=channels), image)
    eigen_cam = of(lambda model: gradcam_kit.EigenCAM(model, "layer4"), batch)
    yield "resnet50", "packed weights, ScoreCAM", _own_weights, score_cam
    yield "resnet50", "channels-last images, GradCAM", _own_order, grad_cam
    yield "resnet50", "rows copied when they are read, AblationCAM at layer3", _read_at_once, ablation
    if device != "cpu":  # the next two are not used on the CPU
        yield "resnet50", "squarings in place of eigh, EigenCAM", _by_eigh, eigen_cam
        yield "resnet50", "remembered answers, AblationCAM at layer3", _asked_anew, ablation


def _rows(
    name: str, trick: str, off: Off, work: Callable[[nn.Module], Work], device: str, rounds: int
) -> Iterator[Row]:
    call = work(build_model(name, device))

    def without() -> Any:
        with off():
            return call()

    runs = interleave({"with": call, "without": without}, rounds)
    yield row(name, trick, runs["with"], runs["without"], "without it")


def _own_weights() -> AbstractContextManager[object]:
    """Make convolutions read their unconverted parameters during the block."""
    return patch.object(memory_format.PackedWeights, "standing_in", lambda *_: nullcontext())


def _own_order() -> AbstractContextManager[object]:
    """Keep the memory format of the images during the block."""
    return patch.object(memory_format, "_pays", lambda _: False)


def _read_at_once() -> AbstractContextManager[object]:
    """Copy every row of a replay during the block, whether or not a module reads it."""
    lazy = LazyRows.__new__

    def read(*arguments: Any) -> torch.Tensor:
        return lazy(*arguments).read()

    return patch.object(LazyRows, "__new__", staticmethod(read))


def _by_eigh() -> AbstractContextManager[object]:
    """Compute eigenvectors with `torch.linalg.eigh` during the block."""

    def solved(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = torch.linalg.eigh(symmetric)
        return values[..., -1], vectors[..., -1]

    return patch.object(components, "by_squaring", solved)


def _asked_anew() -> AbstractContextManager[object]:
    """Make the host wait for every condition during the block, instead of using answers that are cached."""
    return patch.object(Checks, "cached_bool", lambda self, question, condition: bool(condition))

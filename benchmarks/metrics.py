"""What metrics cost beside plain forward passes of as many images, and the same work by other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import SkippedError, Work, interleave, memory_bounded, reason
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.peers import installed
from benchmarks.ratios import row
from benchmarks.results import Results, Row, environment, place_of
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.metrics import deletion, insertion, road_combined, road_curve

MODEL, LAYER = "resnet18", "layer4"
PERCENTAGES = (20.0, 40.0, 60.0, 80.0)
CHUNK = 16
"""Rows in one forward pass."""
_FLIPS = 12


def run(
    images: Annotated[int, typer.Option(help="images in the batch", min=1)] = 8,
    steps: Annotated[int, typer.Option(help="steps of deletion and insertion", min=1)] = 16,
    rounds: Rounds = 3,
    threads: Threads = 1,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Deletion, insertion and ROAD, against the plain forward pass of as many images."""
    torch.set_num_threads(threads)
    side = 224
    if quick:
        images, steps, rounds, side = 1, 2, 1, 64
    with memory_bounded():
        rows = [*forward_rows(images, steps, rounds, side), *peer_rows(min(images, 2), rounds, side)]
    settings = environment("cpu", seed=SEED, images=images, steps=steps, rounds=rounds, side=side, chunk=CHUNK)
    Results("metrics", settings, rows).finish(place_of("metrics", "cpu", out, quick))


def forward_rows(count: int, steps: int, rounds: int, side: int) -> Iterator[Row]:
    """Both curves, and ROAD in both orders, on heatmaps of Grad-CAM."""
    model, images, heatmaps = _explained(count, side)
    with rescoring(model, images, batch_size=CHUNK) as rescore:

        def curves() -> object:
            return (
                deletion(heatmaps, images, rescore, steps=steps, batch_size=CHUNK),
                insertion(heatmaps, images, rescore, steps=steps, batch_size=CHUNK),
            )

        def road() -> object:
            return road_combined(heatmaps, images, rescore, percentages=PERCENTAGES, batch_size=CHUNK)

        for name, rows, work in (
            ("deletion + insertion", 2 * count * (steps + 1), curves),
            ("ROAD, both orders", 2 * count * len(PERCENTAGES), road),
        ):
            plain = f"forward pass of {rows} images"
            runs = interleave({plain: _forwards(model, images, rows), name: work}, rounds)
            yield from (row(MODEL, one, timed, runs[plain]) for one, timed in runs.items())


def peer_rows(count: int, rounds: int, side: int) -> Iterator[Row]:
    """The same work by other libraries, beside ours; they go from image to image or from step to step on the host."""
    model, images, heatmaps = _explained(count, side)
    with torch.inference_mode():
        classes = model(images).argmax(1)
    batch = _Batch(model, images, heatmaps, classes)
    for peer, name, ours, build in (
        ("pytorch-grad-cam", "ROAD, both orders", _road, _grad_cam_road),
        ("Quantus", "ROAD, most relevant first", _road_curve, _quantus_road),
        ("Quantus", f"pixel flipping, {_FLIPS} steps", _deletion, _quantus_flipping),
    ):
        theirs = f"{peer}: {name}"
        try:
            works: dict[str, Work] = {f"{name}, {count} images": partial(ours, batch), theirs: build(batch)}
        except SkippedError as error:
            yield Row({"model": MODEL, "work": theirs}, skipped=reason(error))
            continue
        runs = interleave(works, rounds)
        own, *_ = runs.values()
        yield from (row(MODEL, one, timed, own) for one, timed in runs.items())


@dataclass(frozen=True)
class _Batch:
    model: nn.Module
    images: Tensor
    heatmaps: Tensor
    classes: Tensor

    @property
    def arrays(self) -> dict[str, Any]:
        """As Quantus takes them."""
        x, y, a = (one.numpy() for one in (self.images, self.classes, self.heatmaps[:, None]))
        return {"model": self.model, "x_batch": x, "y_batch": y, "a_batch": a, "batch_size": CHUNK, "device": "cpu"}


def _road(batch: _Batch) -> object:
    with rescoring(batch.model, batch.images, batch.classes, batch_size=CHUNK) as rescore:
        return road_combined(batch.heatmaps, batch.images, rescore, percentages=PERCENTAGES, batch_size=CHUNK)


def _road_curve(batch: _Batch) -> object:
    with rescoring(batch.model, batch.images, batch.classes, batch_size=CHUNK) as rescore:
        return road_curve(batch.heatmaps, batch.images, rescore, percentages=PERCENTAGES, batch_size=CHUNK)


def _deletion(batch: _Batch) -> object:
    with rescoring(batch.model, batch.images, batch.classes, batch_size=CHUNK) as rescore:
        return deletion(batch.heatmaps, batch.images, rescore, steps=_FLIPS, batch_size=CHUNK)


def _grad_cam_road(batch: _Batch) -> Work:
    road = installed("pytorch_grad_cam.metrics.road", "grad-cam")
    targets = installed("pytorch_grad_cam.utils.model_targets", "grad-cam")
    targets = [targets.ClassifierOutputSoftmaxTarget(int(one)) for one in batch.classes]
    metric = road.ROADCombined(percentiles=[int(percent) for percent in PERCENTAGES])
    return lambda: metric(batch.images, batch.heatmaps.numpy(), targets, batch.model)


def _quantus_road(batch: _Batch) -> Work:
    percentages = [int(percent) for percent in PERCENTAGES]
    metric = installed("quantus").ROAD(percentages=percentages, noise=0.01, disable_warnings=True)
    return lambda: metric(**batch.arrays)


def _quantus_flipping(batch: _Batch) -> Work:
    """It removes values of single channels, a quarter of the positions' number at a time: 12 steps for 3 channels."""
    features = batch.heatmaps[0].numel() * batch.images.shape[1] // _FLIPS
    metric = installed("quantus").PixelFlipping(
        features_in_step=features, perturb_baseline="black", disable_warnings=True
    )
    return lambda: metric(**batch.arrays)


def _explained(count: int, side: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, images = build_model(MODEL), build_images(count, side=side)
    return model, images, GradCAM(model, LAYER)(images)


def _forwards(model: nn.Module, images: Tensor, rows: int) -> Work:
    chunk = images.repeat(-(-CHUNK // len(images)), 1, 1, 1)[:CHUNK].contiguous()

    def work() -> None:
        with torch.inference_mode():
            for start in range(0, rows, CHUNK):
                model(chunk[: rows - start])

    return work

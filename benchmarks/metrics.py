"""What metrics cost beside plain forward passes of as many images, and ROAD beside that of another library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Work, interleave, memory_bounded, reason
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.ratios import row
from benchmarks.results import Results, Row, environment, place_of
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.metrics import deletion, insertion, road_combined

MODEL, LAYER = "resnet18", "layer4"
PERCENTAGES = (20.0, 40.0, 60.0, 80.0)
CHUNK = 16
"""Rows in one forward pass."""


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
    """The same ROAD by pytorch-grad-cam, which solves one image after the other on the host."""
    name = "pytorch-grad-cam: ROAD, both orders"
    try:
        from pytorch_grad_cam.metrics.road import ROADCombined
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
    except ImportError as error:
        yield Row({"model": MODEL, "work": name}, skipped=reason(error))
        return
    model, images, heatmaps = _explained(count, side)
    with torch.inference_mode():
        classes = model(images).argmax(1)
    targets = [ClassifierOutputSoftmaxTarget(int(one)) for one in classes]
    theirs = ROADCombined(percentiles=[int(percent) for percent in PERCENTAGES])

    def road() -> object:
        with rescoring(model, images, classes, batch_size=CHUNK) as rescore:
            return road_combined(heatmaps, images, rescore, percentages=PERCENTAGES, batch_size=CHUNK)

    works: dict[str, Work] = {
        f"ROAD of {count} images": road,
        name: lambda: theirs(images, heatmaps.numpy(), targets, model),
    }
    runs = interleave(works, rounds)
    yield from (row(MODEL, one, timed, runs[f"ROAD of {count} images"]) for one, timed in runs.items())


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

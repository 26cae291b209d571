"""Compare the time of metrics with plain forward passes of as many images, and with other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Work, interleave
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.peers import installed
from benchmarks.ratios import rows_beside
from benchmarks.results import Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit import GradCAM
from gradcam_kit.capture import Rescoring, rescoring
from gradcam_kit.metrics import deletion, insertion, road_combined, road_curve

MODEL, LAYER = "resnet18", "layer4"
PERCENTAGES = (20.0, 40.0, 60.0, 80.0)
CHUNK = 64
"""Maximum number of rows in one forward pass, as by default; on a CPU, metrics use fewer rows if that is faster."""
_FLIPS = 12


def run(
    images: Annotated[int, typer.Option(help="number of images in the batch", min=1)] = 64,
    steps: Annotated[int, typer.Option(help="number of steps of deletion and of insertion", min=1)] = 16,
    rounds: Rounds = 3,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Compare deletion, insertion and ROAD with plain forward passes of as many images, and with other libraries."""
    side = 224
    if quick:
        images, steps, rounds, side = 1, 2, 1, 64
    rows = chain(forward_rows(images, steps, rounds, side), peer_rows(min(images, 2), rounds, side))
    settings = {"seed": SEED, "images": images, "steps": steps, "rounds": rounds, "side": side, "chunk": CHUNK}
    record("metrics", "cpu", rows, threads=threads, out=out, quick=quick, **settings)


def forward_rows(count: int, steps: int, rounds: int, side: int) -> Iterator[Row]:
    """Yield rows for deletion with insertion, and for ROAD in both orders, on Grad-CAM heatmaps."""
    for name, rows, work in (
        ("deletion + insertion", 2 * count * (steps + 1), partial(_curves, steps=steps)),
        ("ROAD, both orders", 2 * count * len(PERCENTAGES), _both_orders),
    ):
        measured = partial(_forward_rows, name, rows, work, count, rounds, side)
        yield from attempt({"model": MODEL, "work": name}, measured)


def _forward_rows(
    name: str, rows: int, work: Callable[..., object], count: int, rounds: int, side: int
) -> Iterator[Row]:
    batch, plain = _explained(count, side), f"forward pass of {rows} images"
    with rescoring(batch.model, batch.images, batch.classes, batch_size=CHUNK) as rescore:
        works: dict[str, Work] = {plain: _forwards(batch, rows), name: partial(work, batch, rescore)}
        yield from rows_beside(MODEL, interleave(works, rounds), plain)


def peer_rows(count: int, rounds: int, side: int) -> Iterator[Row]:
    """Yield rows for the same work with other libraries, which loop over images or steps on the host."""
    for peer, name, ours, build in (
        ("pytorch-grad-cam", "ROAD, both orders", _road, _grad_cam_road),
        ("Quantus", "ROAD, most relevant first", _road_curve, _quantus_road),
        ("Quantus", f"pixel flipping, {_FLIPS} steps", _deletion, _quantus_flipping),
    ):
        own, theirs = f"{name}, {count} images", f"{peer}: {name}"
        measured = partial(_peer_rows, own, ours, theirs, build, count, rounds, side)
        yield from attempt({"model": MODEL, "work": theirs}, measured)


def _peer_rows(
    own: str,
    ours: Callable[[_Batch], object],
    theirs: str,
    build: Callable[[_Batch], Work],
    count: int,
    rounds: int,
    side: int,
) -> Iterator[Row]:
    batch = _explained(count, side)
    works: dict[str, Work] = {own: partial(ours, batch), theirs: build(batch)}
    yield from rows_beside(MODEL, interleave(works, rounds), own)


@dataclass(frozen=True)
class _Batch:
    model: nn.Module
    images: Tensor
    heatmaps: Tensor
    classes: Tensor

    @property
    def arrays(self) -> dict[str, Any]:
        """Return the arguments of a Quantus metric, with tensors as arrays."""
        x, y, a = (one.numpy() for one in (self.images, self.classes, self.heatmaps[:, None]))
        return {"model": self.model, "x_batch": x, "y_batch": y, "a_batch": a, "batch_size": CHUNK, "device": "cpu"}


def _curves(batch: _Batch, rescore: Rescoring, steps: int) -> object:
    return (
        deletion(batch.heatmaps, batch.images, rescore, steps=steps, batch_size=CHUNK),
        insertion(batch.heatmaps, batch.images, rescore, steps=steps, batch_size=CHUNK),
    )


def _both_orders(batch: _Batch, rescore: Rescoring) -> object:
    return road_combined(batch.heatmaps, batch.images, rescore, percentages=PERCENTAGES, batch_size=CHUNK)


def _road(batch: _Batch) -> object:
    with rescoring(batch.model, batch.images, batch.classes, batch_size=CHUNK) as rescore:
        return _both_orders(batch, rescore)


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
    """Return Quantus' pixel flipping in 12 steps; a step removes values and not positions, so channels are included."""
    features = batch.heatmaps[0].numel() * batch.images.shape[1] // _FLIPS
    metric = installed("quantus").PixelFlipping(
        features_in_step=features, perturb_baseline="black", disable_warnings=True
    )
    return lambda: metric(**batch.arrays)


def _explained(count: int, side: int) -> _Batch:
    model, images = build_model(MODEL), build_images(count, side=side)
    with torch.inference_mode():
        classes = model(images).argmax(1)
    return _Batch(model, images, GradCAM(model, LAYER)(images), classes)


def _forwards(batch: _Batch, rows: int) -> Work:
    chunk = batch.images.repeat(-(-CHUNK // len(batch.images)), 1, 1, 1)[:CHUNK].contiguous()

    def work() -> None:
        with torch.inference_mode():
            for start in range(0, rows, CHUNK):
                batch.model(chunk[: rows - start])

    return work

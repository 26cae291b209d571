"""Compare heatmaps with a plain forward pass: time as interleaved ratios, memory as growth of a fresh process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import gradcam_kit
from benchmarks.measure import Run, Work, import_seconds, interleave, peak_growth
from benchmarks.methods import FORWARD, cam_work
from benchmarks.options import Device, Out, Quick, Rounds, Threads, device_of
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model, forward, forward_work
from gradcam_kit import METHODS, BaseCAM

GRADIENT_METHODS = (
    "grad-cam",
    "grad-cam++",
    "hires-cam",
    "xgrad-cam",
    "layer-cam",
    "grad-cam-elementwise",
    "seg-xres-cam",
    "eigen-grad-cam",
    "seg-eigen-cam",
    "cam",
)
"""Ten methods that share one pass."""

MODEL, LAYER = "resnet50", "layer4"


def run(
    device: Device = "auto",
    rounds: Rounds = 7,
    batch: Annotated[int, typer.Option(help="number of images in a batch", min=1)] = 16,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Compare the time and memory of heatmaps with a plain forward pass, and time imports."""
    device, side = device_of(device), 224
    if quick:
        rounds, batch, side = 1, 1, 64
    rows = attempt({"model": MODEL, "work": "all"}, partial(gradient_rows, device, batch, rounds, side))
    if not quick:
        replay = attempt({"model": MODEL, "work": "layer3"}, partial(replay_rows, device, rounds))
        score = attempt({"model": "resnet18", "work": "ScoreCAM"}, partial(score_cam_rows, device, rounds))
        rows = chain(rows, replay, score, memory_rows(device, batch), import_rows())
    settings = {"seed": SEED, "batch": batch, "rounds": rounds}
    record("ratios", device, rows, threads=threads, out=out, quick=quick, **settings)


def forward_of(count: int, side: int) -> str:
    """Return the name of the work that is a plain forward pass of this size."""
    return f"{FORWARD} of {count} images of {side}²"


def gradient_rows(device: str, batch: int, rounds: int, side: int) -> Iterator[Row]:
    """Yield rows for gradient methods, EinsumCAM, EigenCAM, Ablation-CAM and Recipro-CAM on ResNet-50."""
    model, images = build_model(MODEL, device), build_images(batch, device, side=side)
    every_class = torch.arange(1000).expand(batch, -1)
    last = images.contiguous(memory_format=torch.channels_last)
    cams = shared(model)
    deep, eigen = gradcam_kit.GradCAM(model, "layer3"), gradcam_kit.EigenCAM(model, LAYER)
    einsum, recipro = gradcam_kit.EinsumCAM(model, LAYER), gradcam_kit.ReciproCAM(model, LAYER)
    ablation = gradcam_kit.AblationCAM(model, LAYER)
    plain = forward_of(batch, side)
    works: dict[str, Work] = {
        plain: forward(model, images),
        "GradCAM, layer4": lambda: cams[0](images),
        "GradCAM, layer3": lambda: deep(images),
        "five gradient methods, explain_all": lambda: gradcam_kit.explain_all(cams[:5], images),
        "ten gradient methods, explain_all": lambda: gradcam_kit.explain_all(cams, images),
        "EinsumCAM, one class": lambda: einsum(images),
        "EinsumCAM, signed maps of all 1000 classes": lambda: einsum.explain(images, every_class).saliency,
        "EigenCAM": lambda: eigen(images),
        "AblationCAM, layer4": lambda: ablation(images),
        "ReciproCAM, layer4": lambda: recipro(images),
        f"{plain}, channels-last": forward(model, last),
        "GradCAM, layer4, channels-last input": lambda: cams[0](last),
    }
    runs = interleave(works, rounds)
    yield from rows_beside(MODEL, runs, plain)
    one = "GradCAM, layer4"
    yield row(MODEL, "ten gradient methods / GradCAM", runs["ten gradient methods, explain_all"], runs[one], one)


def shared(model: nn.Module) -> list[BaseCAM]:
    """Return the ten gradient methods at the last stage."""
    return [METHODS[name](model, LAYER) for name in GRADIENT_METHODS]


def replay_rows(device: str, rounds: int) -> Iterator[Row]:
    """Yield rows for Recipro-CAM and Ablation-CAM at layer3 of ResNet-50, compared with a full pass per masked row."""
    side, count = 128, 64  # the layer has 8 x 8 positions, hence 64 rows
    model, image = build_model(MODEL, device), build_images(1, device, side=side)
    recipro = gradcam_kit.ReciproCAM(model, "layer3", batch_size=count)
    ablation = gradcam_kit.AblationCAM(model, "layer3", channels=count, batch_size=count)
    whole = forward_of(count, side)
    works: dict[str, Work] = {
        whole: forward(model, image.expand(count, -1, -1, -1).contiguous()),
        f"ReciproCAM, layer3, {count} positions": lambda: recipro(image),
        f"AblationCAM, layer3, {count} channels": lambda: ablation(image),
    }
    yield from rows_beside(MODEL, interleave(works, rounds), whole)


def score_cam_rows(device: str, rounds: int) -> Iterator[Row]:
    """Yield rows for Score-CAM on one image with ResNet-18, compared with a pass per nonconstant channel."""
    model, images = build_model("resnet18", device), build_images(1, device)
    cam = gradcam_kit.ScoreCAM(model, LAYER, batch_size=32)
    tenth = gradcam_kit.ScoreCAM(model, LAYER, batch_size=32, channels=0.1)
    half = gradcam_kit.ScoreCAM(model, LAYER, batch_size=32, dtype=torch.bfloat16)
    rows = images.expand(32, -1, -1, -1).contiguous()
    chunk = forward(model, rows)
    activations = _features(model, images).flatten(2)
    live = int((activations.amax(2) != activations.amin(2)).sum())

    def forwards() -> None:
        for _ in range(-(-live // len(rows))):
            chunk()

    plain = forward_of(live, images.shape[-1])
    works: dict[str, Work] = {
        plain: forwards,
        f"ScoreCAM of {live} live channels": lambda: cam(images),
        "ScoreCAM of a tenth of the channels": lambda: tenth(images),
        "ScoreCAM, masked passes in bfloat16": lambda: half(images),
    }
    yield from rows_beside("resnet18", interleave(works, rounds), plain)


def _features(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        for name, module in model.named_children():
            images = module(images)
            if name == LAYER:
                break
    return images


def rows_beside(model: str, runs: Mapping[str, Run], baseline: str) -> Iterator[Row]:
    """Yield a row for every run, with its ratios to the run that is named `baseline`."""
    for work, run in runs.items():
        yield row(model, work, run, runs[baseline], "" if work == baseline else baseline)


def row(model: str, work: str, run: Run, baseline: Run, beside: str) -> Row:
    """Return a row with the time of a work and its ratios to the baseline; `beside` is "" for the baseline itself."""
    case = {"model": model, "work": work}
    if run.skipped or baseline.skipped:
        return Row(case, skipped=run.skipped or f"nothing to compare with: {baseline.skipped}")
    figures = {"seconds": run.seconds, "ratio": run.over(baseline), "passes": run.passes(baseline)}
    return Row(case, figures, beside=beside)


def memory_rows(device: str, batch: int) -> Iterator[Row]:
    """Yield the growth of the peak memory in several processes, because the allocator behaves differently in each."""
    works: dict[tuple[str, str], tuple[Any, ...]] = {
        (MODEL, FORWARD): (forward_work, MODEL, batch, device),
        (MODEL, "GradCAM"): (cam_work, "grad-cam", [LAYER], MODEL, batch, device),
        ("resnet18", "ScoreCAM, 64 channels, 16 at a time"): (score_cam_work, 64, device),
        ("resnet18", "ScoreCAM, 512 channels, 16 at a time"): (score_cam_work, 512, device),
    }
    for (model, work), build in works.items():
        case = {"model": model, "work": f"memory of {work}"}
        yield from attempt(case, partial(_memory_row, case, device, *build))


def _memory_row(case: Mapping[str, str], device: str, *build: Any) -> list[Row]:
    return [Row(case, {"peak_mb": Figure.of(peak_growth(device, *build).median for _ in range(5))})]


def score_cam_work(channels: int, device: str) -> Work:
    """Return Score-CAM on one image, for a fresh process."""
    cam = gradcam_kit.ScoreCAM(build_model("resnet18", device), LAYER, channels=channels, batch_size=16)
    images = build_images(1, device)
    return lambda: cam(images)


def import_rows() -> Iterator[Row]:
    """Yield the seconds of importing torch and this package in fresh processes."""
    for module in ("torch", "gradcam_kit"):
        case = {"model": "", "work": f"import {module}"}
        yield from attempt(case, partial(_import_row, case, module))


def _import_row(case: Mapping[str, str], module: str) -> list[Row]:
    return [Row(case, {"seconds": import_seconds(module, 3)})]

"""What a heatmap costs beside a plain forward pass: time as interleaved ratios, memory as growth of a fresh process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import gradcam_kit
from benchmarks.measure import Run, Work, import_seconds, interleave, memory_bounded, peak_growth
from benchmarks.methods import cam_work
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.results import Figure, Results, Row, environment, place_of
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
"""Ten that one pass serves."""

FORWARD, CHANNELS_LAST = "plain forward", "plain forward, channels-last input"
MODEL, LAYER = "resnet50", "layer4"


def run(rounds: Rounds = 7, batch: int = 16, threads: Threads = 2, out: Out = None, quick: Quick = False) -> None:
    """What a heatmap costs beside a plain forward pass."""
    torch.set_num_threads(threads)
    side = 224
    if quick:
        rounds, batch, side = 1, 1, 64
    with memory_bounded():
        rows = gradient_rows(batch, rounds, side)
        if not quick:
            rows += [*replay_rows(rounds), *score_cam_rows(min(rounds, 3)), *memory_rows(batch), *import_rows()]
    settings = environment("cpu", seed=SEED, batch=batch, rounds=rounds)
    Results("ratios", settings, rows).finish(place_of("ratios", "cpu", out, quick))


def gradient_rows(batch: int, rounds: int, side: int) -> list[Row]:
    """Gradient methods, EinsumCAM, EigenCAM, Ablation-CAM and Recipro-CAM on ResNet-50, against its forward pass."""
    model, images = build_model(MODEL), build_images(batch, side=side)
    every_class = torch.arange(1000).expand(batch, -1)
    last = images.contiguous(memory_format=torch.channels_last)
    cams = shared(model)
    deep, eigen = gradcam_kit.GradCAM(model, "layer3"), gradcam_kit.EigenCAM(model, LAYER)
    einsum, recipro = gradcam_kit.EinsumCAM(model, LAYER), gradcam_kit.ReciproCAM(model, LAYER)
    ablation = gradcam_kit.AblationCAM(model, LAYER)
    works: dict[str, Work] = {
        FORWARD: forward(model, images),
        "GradCAM, layer4": lambda: cams[0](images),
        "GradCAM, layer3": lambda: deep(images),
        "five gradient methods, explain_all": lambda: gradcam_kit.explain_all(cams[:5], images),
        "ten gradient methods, explain_all": lambda: gradcam_kit.explain_all(cams, images),
        "EinsumCAM, one class": lambda: einsum(images),
        "EinsumCAM, signed maps of all 1000 classes": lambda: einsum.explain(images, every_class).saliency,
        "EigenCAM": lambda: eigen(images),
        "AblationCAM, layer4": lambda: ablation(images),
        "ReciproCAM, layer4": lambda: recipro(images),
        CHANNELS_LAST: forward(model, last),
        "GradCAM, layer4, channels-last input": lambda: cams[0](last),
    }
    runs = interleave(works, rounds)
    rows = [row(MODEL, name, run, runs[FORWARD]) for name, run in runs.items()]
    ten, one = runs["ten gradient methods, explain_all"], runs["GradCAM, layer4"]
    return [*rows, row(MODEL, "ten gradient methods / GradCAM", ten, one)]


def shared(model: nn.Module) -> list[BaseCAM]:
    """The ten gradient methods at the last stage."""
    return [METHODS[name](model, LAYER) for name in GRADIENT_METHODS]


def replay_rows(rounds: int) -> list[Row]:
    """Recipro-CAM and Ablation-CAM in the middle of ResNet-50 against one whole pass per masked row."""
    side, count = 128, 64  # the layer has 8 x 8 positions
    model, image = build_model(MODEL), build_images(1, side=side)
    recipro = gradcam_kit.ReciproCAM(model, "layer3", batch_size=count)
    ablation = gradcam_kit.AblationCAM(model, "layer3", channels=count, batch_size=count)
    whole = f"plain forward of {count} images"
    works: dict[str, Work] = {
        whole: forward(model, image.expand(count, -1, -1, -1).contiguous()),
        f"ReciproCAM, layer3, {count} positions": lambda: recipro(image),
        f"AblationCAM, layer3, {count} channels": lambda: ablation(image),
    }
    runs = interleave(works, rounds)
    return [row(MODEL, name, run, runs[whole]) for name, run in runs.items()]


def score_cam_rows(rounds: int) -> list[Row]:
    """Score-CAM on one image of ResNet-18 against one forward pass per live channel, in the same batches."""
    model, images = build_model("resnet18"), build_images(1)
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

    name = f"plain forward of {live} images"
    works: dict[str, Work] = {
        name: forwards,
        f"ScoreCAM of {live} live channels": lambda: cam(images),
        "ScoreCAM of a tenth of the channels": lambda: tenth(images),
        "ScoreCAM, masked passes in bfloat16": lambda: half(images),
    }
    runs = interleave(works, rounds)
    return [row("resnet18", work, run, runs[name]) for work, run in runs.items()]


def _features(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        for name, module in model.named_children():
            images = module(images)
            if name == LAYER:
                break
    return images


def row(model: str, work: str, run: Run, baseline: Run) -> Row:
    """Time of a work, and its ratios to a baseline."""
    case = {"model": model, "work": work}
    if run.skipped or baseline.skipped:
        return Row(case, skipped=run.skipped or f"nothing to compare with: {baseline.skipped}")
    return Row(case, {"seconds": run.seconds, "ratio": run.over(baseline), "passes": run.passes(baseline)})


def memory_rows(batch: int) -> list[Row]:
    """Growth of the peak memory; of several processes, because the allocator's luck differs between them."""
    works: dict[tuple[str, str], tuple[Any, ...]] = {
        (MODEL, FORWARD): (forward_work, MODEL, batch),
        (MODEL, "GradCAM"): (cam_work, "grad-cam", [LAYER], MODEL, batch),
        ("resnet18", "ScoreCAM, 64 channels, 16 at a time"): (score_cam_work, 64),
        ("resnet18", "ScoreCAM, 512 channels, 16 at a time"): (score_cam_work, 512),
    }
    return [
        Row(
            {"model": model, "work": f"memory of {work}"},
            {"peak_mb": Figure.of(peak_growth("cpu", *build).median for _ in range(5))},
        )
        for (model, work), build in works.items()
    ]


def score_cam_work(channels: int) -> Work:
    """Score-CAM on one image, for a fresh process."""
    cam = gradcam_kit.ScoreCAM(build_model("resnet18"), LAYER, channels=channels, batch_size=16)
    images = build_images(1)
    return lambda: cam(images)


def import_rows() -> list[Row]:
    """Seconds of imports in fresh processes."""
    return [
        Row({"model": "", "work": f"import {module}"}, {"seconds": import_seconds(module, 3)})
        for module in ("torch", "gradcam_kit")
    ]

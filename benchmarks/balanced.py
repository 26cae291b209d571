"""Measure the cost of balanced gradients: BalancedCAM compared with a plain forward pass and exact gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Annotated

import torch
import typer
from torch import nn

import gradcam_kit
from benchmarks.measure import Work, interleave
from benchmarks.options import Device, Out, Quick, Rounds, Threads, device_of
from benchmarks.ratios import forward_of, rows_beside
from benchmarks.results import Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model, forward

VIT, EMBEDDING = "vit_small_patch16_224", "patch_embed"
RESNET, LAYER = "resnet50", "layer4"


def run(
    device: Device = "auto",
    rounds: Rounds = 9,
    batch: Annotated[int, typer.Option(help="number of images in a batch", min=1)] = 2,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Compare BalancedCAM with a plain forward pass and with exact gradients, on ViT-S/16 and ResNet-50."""
    device, side = device_of(device), 224
    if quick:
        rounds, batch, side = 1, 1, 64
    works = {VIT: vit_rows, RESNET: resnet_rows}
    rows = chain.from_iterable(
        attempt({"model": model, "work": "all"}, partial(rows_of, device, batch, side, rounds))
        for model, rows_of in works.items()
    )
    record("balanced", device, rows, threads=threads, out=out, quick=quick, seed=SEED, batch=batch, rounds=rounds)


def vit_rows(device: str, batch: int, side: int, rounds: int) -> Iterator[Row]:
    """Yield rows for methods at the patch embedding (the first layer of the model) and at their automatic layers."""
    import timm

    torch.manual_seed(SEED)
    model: nn.Module = timm.create_model(VIT, pretrained=False, img_size=side).eval().to(device)
    images, plain = build_images(batch, device, side=side), forward_of(batch, side)
    balanced = gradcam_kit.BalancedCAM(model)
    balanced_early = gradcam_kit.BalancedCAM(model, EMBEDDING)
    exact_early = gradcam_kit.HiResCAM(model, EMBEDDING)
    last = gradcam_kit.GradCAM(model)
    for chooses in (balanced, last):  # layers are chosen in the first call, which is not part of the cost
        chooses(images)
    works: dict[str, Work] = {
        plain: forward(model, images),
        "GradCAM, last block": lambda: last(images),
        "HiResCAM, patch embedding, exact gradients": lambda: exact_early(images),
        "BalancedCAM, patch embedding": lambda: balanced_early(images),
        "BalancedCAM": lambda: balanced(images),
    }
    runs = interleave(works, rounds)
    yield from rows_beside(VIT, runs, plain)


def resnet_rows(device: str, batch: int, side: int, rounds: int) -> Iterator[Row]:
    """Yield rows for the last stage of a ReLU network, where balanced and exact gradients are equal."""
    model, images = build_model(RESNET, device), build_images(batch, device, side=side)
    plain = forward_of(batch, side)
    balanced, exact = gradcam_kit.BalancedCAM(model, LAYER), gradcam_kit.HiResCAM(model, LAYER)
    works: dict[str, Work] = {
        plain: forward(model, images),
        "HiResCAM, layer4": lambda: exact(images),
        "BalancedCAM, layer4": lambda: balanced(images),
    }
    yield from rows_beside(RESNET, interleave(works, rounds), plain)

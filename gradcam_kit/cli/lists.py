"""The commands that list models, layers of a model, methods and metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from gradcam_kit.cli.options import Checkpoint, Device, ImageSize, Model, Weights
from gradcam_kit.cli.printing import mark, say, show
from gradcam_kit.errors import extra_hint


def layers(
    model: Model,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    device: Device = None,
) -> None:
    """List the layers that can be explained, their shapes, and which one is chosen by default and why."""
    from gradcam_kit.jobs import ModelRequest
    from gradcam_kit.jobs.listing import candidate_layers

    request = ModelRequest(model, checkpoint=checkpoint, weights=weights, image_size=image_size, device=device)
    found = candidate_layers(request)
    rows = [
        [one.name, " x ".join(map(str, one.shape)), one.layout, mark(one.reached), mark(one.chosen)] for one in found
    ]
    show(["layer", "shape", "layout", "gradients", "chosen"], rows)
    for one in found:
        if one.chosen:
            say(f"{one.name} is chosen: {one.reason}", err=False)


def models(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN", help="A part of the name, or a glob such as 'timm:vit_*'.", show_default="all models"
        ),
    ] = "",
) -> None:
    """List the named models, including those of torchvision and timm, with their pretrained weights."""
    from gradcam_kit.models.named import has_timm, named_models

    found = named_models(pattern)
    width = max(len(model.spec) for model in found)
    for model in found:
        about = model.note or ", ".join(model.weights) or "no pretrained weights"
        say(f"{model.spec:<{width}}  {about}", err=False)
    if not has_timm():
        say(f"timm is not installed, so its models are missing; {extra_hint('models')}")
    say("Use a model with --model NAME --weights WEIGHTS; DEFAULT is the best set of weights.")


def methods() -> None:
    """List all methods in the order in which to try them, with their use, needs, cost and paper."""
    from gradcam_kit.jobs.listing import described_methods

    show(["method", "good for", "needs", "cost", "paper"], described_methods())
    letters = "F = forward pass, B = backward pass from the score to the layer, R = forward pass of one masked image"
    say(letters, err=False)
    say("for vision transformers use balanced-cam: exact gradients localize a transformer's evidence poorly", err=False)


def metrics() -> None:
    """List all metrics with their better direction, needs, cost and paper."""
    from gradcam_kit.jobs.listing import described_metrics

    show(["metric", "better", "needs", "cost", "paper"], described_metrics())
    say("per heatmap: F = forward pass of the model, E = another run of the method", err=False)

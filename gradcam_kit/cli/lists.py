"""The commands that list: layers of a model, methods, metrics."""

from __future__ import annotations

from gradcam_kit.cli.options import Checkpoint, Device, ImageSize, Model, Weights
from gradcam_kit.cli.printing import mark, say, show


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


def methods() -> None:
    """List every method: what it needs, what it costs, its paper."""
    from gradcam_kit.jobs.listing import described_methods

    show(["method", "needs", "cost", "paper"], described_methods())
    letters = "F = forward pass, B = backward pass from the score to the layer, R = forward pass of one masked row"
    say(letters, err=False)
    say("for vision transformers: balanced-cam; exact gradients hardly tell where a transformer looks", err=False)


def metrics() -> None:
    """List every metric: which way is better, what it needs, what it costs, its paper."""
    from gradcam_kit.jobs.listing import described_metrics

    show(["metric", "better", "needs", "cost", "paper"], described_metrics())
    say("F = forward pass of the model, E = the method once more; of each heatmap", err=False)

"""The model's output with a graph down to the images, which tells by what operations it was computed."""

from __future__ import annotations

from typing import Any

import torch

from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import untouched


def output_with_graph(model: torch.nn.Module, inputs: Inputs) -> Any:
    """Return what the model puts out for the first sample; the graph lives as long as the result is held."""
    first = inputs.first()
    device = first.images.device
    with torch.inference_mode(False), untouched(model, device), torch.enable_grad():
        return Runner.of(model, device)(first.with_images(first.images.detach().clone().requires_grad_()))

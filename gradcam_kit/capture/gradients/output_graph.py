"""Compute the model's output with a graph back to the images, in which the last operations can be inspected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradcam_kit.capture.deferred_checks import on_host
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.errors import GradCamKitError, is_out_of_memory, raise_interruption
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import ScoreKind, evident_kind


def output_with_graph(model: torch.nn.Module, inputs: Inputs) -> Any:
    """Return the model's output for the first sample, with its graph, which is freed together with the output."""
    first = inputs.first()
    device = first.images.device
    with torch.inference_mode(False), untouched(model, device), torch.enable_grad():
        return Runner.of(model, device)(first.with_images(first.images.detach().clone().requires_grad_()))


def score_kind(model: torch.nn.Module, inputs: Inputs, output: Any = None) -> ScoreKind | None:
    """Return the kind of the model's scores as `evident_kind` determines it, or None if the output is not class scores.

    If the output is missing or could be probabilities, the model runs once, with a graph, on the first sample.

    Args:
        model: the model.
        inputs: the inputs of a call of the model.
        output: the model's output for these inputs; None if it has not been computed yet.
    """
    known: list[Tensor] = []
    try:
        if output is not None:
            logits = read_logits(output).detach()
            values = on_host(logits.float())
            if bool(((values < 0) | (values > 1)).any()):
                return evident_kind(model, [values])[0]
            known.append(logits)
        known.insert(0, read_logits(output_with_graph(model, inputs)))
    except GradCamKitError:
        pass
    except Exception as error:  # the model cannot have a graph, or does not accept a single sample
        raise_interruption(error)
        if is_out_of_memory(error):
            raise
    return evident_kind(model, known)[0] if known else None

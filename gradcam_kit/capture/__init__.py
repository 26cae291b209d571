"""The only code that touches a model: hooks, layers, tokens, targets, replay."""

from gradcam_kit.capture.automatic import choose_layers, layer_candidates
from gradcam_kit.capture.inputs import Inputs, read_inputs
from gradcam_kit.capture.layers import TargetLayers, find_layers
from gradcam_kit.capture.passes import Capture, Request, capture
from gradcam_kit.capture.state import check_model
from gradcam_kit.capture.targets import (
    ClassLogit,
    ClassProbability,
    ClassTarget,
    LogitDifference,
    resolve_target,
)

__all__ = [
    "Capture",
    "ClassLogit",
    "ClassProbability",
    "ClassTarget",
    "Inputs",
    "LogitDifference",
    "Request",
    "TargetLayers",
    "capture",
    "choose_layers",
    "layer_candidates",
    "check_model",
    "find_layers",
    "read_inputs",
    "resolve_target",
]

"""The only code that touches a model: hooks, layers, tokens, targets, replay."""

from gradcam_kit.capture.automatic import choose_among, choose_layers, layer_candidates
from gradcam_kit.capture.class_targets import FinerTarget
from gradcam_kit.capture.compiled import compile_around
from gradcam_kit.capture.inputs import Inputs, read_inputs
from gradcam_kit.capture.layers import TargetLayers, find_layers
from gradcam_kit.capture.memory_format import in_fastest_format
from gradcam_kit.capture.passes import Capture, Request, capture
from gradcam_kit.capture.rescoring import IsPrediction, rescoring
from gradcam_kit.capture.scoring import in_half_precision, rows_at_once
from gradcam_kit.capture.state import check_model
from gradcam_kit.capture.targets import (
    ClassLogit,
    ClassProbability,
    ClassTarget,
    resolve_target,
)

__all__ = [
    "Capture",
    "ClassLogit",
    "ClassProbability",
    "ClassTarget",
    "FinerTarget",
    "Inputs",
    "IsPrediction",
    "Request",
    "TargetLayers",
    "capture",
    "check_model",
    "choose_among",
    "choose_layers",
    "compile_around",
    "find_layers",
    "in_fastest_format",
    "in_half_precision",
    "layer_candidates",
    "read_inputs",
    "rescoring",
    "resolve_target",
    "rows_at_once",
]

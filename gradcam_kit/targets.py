"""What to explain: callables from the model's output to one score per sample."""

from gradcam_kit.capture.class_targets import FinerTarget, LogitDifference
from gradcam_kit.capture.targets import ClassLogit, ClassProbability

__all__ = ["ClassLogit", "ClassProbability", "FinerTarget", "LogitDifference"]

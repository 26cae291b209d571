"""What to explain: callables from the model's output to one score per sample."""

from gradcam_kit.capture.targets import ClassLogit, ClassProbability, LogitDifference

__all__ = ["ClassLogit", "ClassProbability", "LogitDifference"]

"""Explain all pictures of a source, load the results of a run, and evaluate its heatmaps."""

from gradcam_kit.jobs.evaluate import EvaluateRequest, Evaluation, evaluate
from gradcam_kit.jobs.request import ModelRequest, RunRequest, RunSummary
from gradcam_kit.jobs.results import Run, load_run
from gradcam_kit.jobs.run import run

__all__ = [
    "EvaluateRequest",
    "Evaluation",
    "ModelRequest",
    "Run",
    "RunRequest",
    "RunSummary",
    "evaluate",
    "load_run",
    "run",
]

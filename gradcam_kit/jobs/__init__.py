"""Explain the pictures of a source: plan the run, read and explain pictures, write shards of rows, and read them."""

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

"""Explain pictures on disk: plan, decoding, shards, engines, and readers of the results."""

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

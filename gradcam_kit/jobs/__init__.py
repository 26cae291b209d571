"""Pictures on disk become heatmaps on disk: index, decoding, shards, the local loop."""

from gradcam_kit.jobs.local import run
from gradcam_kit.jobs.request import ModelRequest, RunRequest, RunSummary

__all__ = ["ModelRequest", "RunRequest", "RunSummary", "run"]

"""Diagnostics: look inside a model while it trains, and report what is wrong, where, and what to try."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradcam_kit.diagnostics.attention import capture_attention
    from gradcam_kit.diagnostics.callbacks.lightning import DiagnosticsCallback
    from gradcam_kit.diagnostics.callbacks.loop import watch_loop
    from gradcam_kit.diagnostics.callbacks.trainer import DiagnosticsTrainerCallback
    from gradcam_kit.diagnostics.checks import (
        can_overfit,
        check_curves,
        check_data,
        check_loss,
        check_output,
        check_training,
    )
    from gradcam_kit.diagnostics.compare import compare_data, compare_models, layer_importance, project
    from gradcam_kit.diagnostics.features import capture_features
    from gradcam_kit.diagnostics.findings import Finding
    from gradcam_kit.diagnostics.gradients import clip_gradients, monitor_gradients, smooth_gradients
    from gradcam_kit.diagnostics.graphs import graph_attention
    from gradcam_kit.diagnostics.maths.distances import cka, mmd
    from gradcam_kit.diagnostics.maths.spectra import effective_rank
    from gradcam_kit.diagnostics.nonfinite import find_nonfinite
    from gradcam_kit.diagnostics.origins import Origin
    from gradcam_kit.diagnostics.overhead import measure_overhead
    from gradcam_kit.diagnostics.pyramid import pyramid_levels
    from gradcam_kit.diagnostics.recurrent import trace_recurrent
    from gradcam_kit.diagnostics.report import LayerRow, ParameterRow, Report
    from gradcam_kit.diagnostics.show.dashboard import dashboard
    from gradcam_kit.diagnostics.thresholds import Thresholds
    from gradcam_kit.diagnostics.watching import ModelDiagnostics
    from gradcam_kit.diagnostics.writers.files import CsvWriter, JsonWriter
    from gradcam_kit.diagnostics.writers.mlflow import MLflowWriter
    from gradcam_kit.diagnostics.writers.protocol import Writer
    from gradcam_kit.diagnostics.writers.tensorboard import TensorBoardWriter
    from gradcam_kit.diagnostics.writers.wandb import WandbWriter

# Map each public name to its module, which is imported on first use.
_HOMES = {
    "CsvWriter": "writers.files",
    "DiagnosticsCallback": "callbacks.lightning",
    "DiagnosticsTrainerCallback": "callbacks.trainer",
    "Finding": "findings",
    "JsonWriter": "writers.files",
    "LayerRow": "report",
    "MLflowWriter": "writers.mlflow",
    "ModelDiagnostics": "watching",
    "Origin": "origins",
    "ParameterRow": "report",
    "Report": "report",
    "TensorBoardWriter": "writers.tensorboard",
    "Thresholds": "thresholds",
    "WandbWriter": "writers.wandb",
    "Writer": "writers.protocol",
    "can_overfit": "checks",
    "capture_attention": "attention",
    "capture_features": "features",
    "check_curves": "checks",
    "check_data": "checks",
    "check_loss": "checks",
    "check_output": "checks",
    "check_training": "checks",
    "cka": "maths.distances",
    "clip_gradients": "gradients",
    "compare_data": "compare",
    "compare_models": "compare",
    "dashboard": "show.dashboard",
    "effective_rank": "maths.spectra",
    "find_nonfinite": "nonfinite",
    "layer_importance": "compare",
    "graph_attention": "graphs",
    "measure_overhead": "overhead",
    "mmd": "maths.distances",
    "monitor_gradients": "gradients",
    "project": "compare",
    "pyramid_levels": "pyramid",
    "smooth_gradients": "gradients",
    "trace_recurrent": "recurrent",
    "watch_loop": "callbacks.loop",
}

__all__ = [
    "CsvWriter",
    "DiagnosticsCallback",
    "DiagnosticsTrainerCallback",
    "Finding",
    "JsonWriter",
    "LayerRow",
    "MLflowWriter",
    "ModelDiagnostics",
    "Origin",
    "ParameterRow",
    "Report",
    "TensorBoardWriter",
    "Thresholds",
    "WandbWriter",
    "Writer",
    "can_overfit",
    "capture_attention",
    "capture_features",
    "check_curves",
    "check_data",
    "check_loss",
    "check_output",
    "check_training",
    "cka",
    "clip_gradients",
    "compare_data",
    "compare_models",
    "dashboard",
    "effective_rank",
    "find_nonfinite",
    "graph_attention",
    "layer_importance",
    "measure_overhead",
    "mmd",
    "monitor_gradients",
    "project",
    "pyramid_levels",
    "smooth_gradients",
    "trace_recurrent",
    "watch_loop",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gradcam_kit.diagnostics.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradcam_kit.diagnostics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Compare two models, two data sets, the units of a layer, or the points of an embedding."""

from gradcam_kit.diagnostics.compare.data import DataComparison, compare_data
from gradcam_kit.diagnostics.compare.embeddings import Projection, project
from gradcam_kit.diagnostics.compare.importance import LayerImportance, layer_importance
from gradcam_kit.diagnostics.compare.models import ModelComparison, compare_models

__all__ = [
    "DataComparison",
    "LayerImportance",
    "ModelComparison",
    "Projection",
    "compare_data",
    "compare_models",
    "layer_importance",
    "project",
]

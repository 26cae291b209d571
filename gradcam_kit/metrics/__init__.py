"""How good are the maps? Batched metrics on tensors, one number per image, and a status where there is none."""

from gradcam_kit.metrics.agreement import pearson, spearman, ssim
from gradcam_kit.metrics.case import METRICS, Case, Metric
from gradcam_kit.metrics.controls import CONTROLS
from gradcam_kit.metrics.faithfulness import (
    adcc,
    adcc_complexity,
    adcc_of_means,
    average_drop,
    average_gain,
    average_increase,
    coherency,
)
from gradcam_kit.metrics.localization import energy_pointing_game
from gradcam_kit.metrics.measured import Measured, Status

__all__ = [
    "CONTROLS",
    "METRICS",
    "Case",
    "Measured",
    "Metric",
    "Status",
    "adcc",
    "adcc_complexity",
    "adcc_of_means",
    "average_drop",
    "average_gain",
    "average_increase",
    "coherency",
    "energy_pointing_game",
    "pearson",
    "spearman",
    "ssim",
]

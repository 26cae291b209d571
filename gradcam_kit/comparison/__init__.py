"""Compare methods, layers and targets on the same images: heatmaps, metrics and costs side by side."""

from gradcam_kit.comparison.comparing import compare
from gradcam_kit.comparison.confusions import ConfusedPair, MistakenImage, Mistakes
from gradcam_kit.comparison.film import HeatmapLogger
from gradcam_kit.comparison.mistakes import analyze_mistakes
from gradcam_kit.comparison.record import Comparison
from gradcam_kit.comparison.writing import check_ending, write_comparisons

__all__ = [
    "Comparison",
    "ConfusedPair",
    "HeatmapLogger",
    "MistakenImage",
    "Mistakes",
    "analyze_mistakes",
    "check_ending",
    "compare",
    "write_comparisons",
]

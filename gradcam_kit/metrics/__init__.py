"""Batched metrics of heatmaps: one number per image, with a status that says whether the number enters means."""

from gradcam_kit.metrics.baselines import BASELINES
from gradcam_kit.metrics.boxes import bounding_boxes, box_accuracy, box_overlaps, max_box_accuracy
from gradcam_kit.metrics.complexity import entropy, sparseness
from gradcam_kit.metrics.correlations import faithfulness_correlation, monotonicity_correlation, sensitivity_n
from gradcam_kit.metrics.curves import deletion, insertion, symmetric_relevance_gain
from gradcam_kit.metrics.faithfulness import (
    adcc,
    adcc_complexity,
    adcc_of_means,
    average_drop,
    average_gain,
    average_increase,
    coherency,
)
from gradcam_kit.metrics.imputation import impute
from gradcam_kit.metrics.localization import (
    box_masks,
    grid_pointing,
    iou,
    mass_accuracy,
    otsu_threshold,
    pointing_game,
    rank_accuracy,
    top_k_intersection,
    weighted_ioa,
)
from gradcam_kit.metrics.paired import PairedDifference, paired_differences
from gradcam_kit.metrics.perturbation import irof, region_perturbation
from gradcam_kit.metrics.pixels import average_precision, pixel_average_precision, pixel_histograms
from gradcam_kit.metrics.randomization import (
    RandomizationCurve,
    class_sensitivity,
    hog_correlation,
    method_agreement,
    parameter_randomization,
)
from gradcam_kit.metrics.randomization_variants import (
    efficient_parameter_randomization,
    smooth_parameter_randomization,
)
from gradcam_kit.metrics.rank_agreement import RankAgreement, rank_agreement
from gradcam_kit.metrics.registry import METRICS, Metric, MetricInput
from gradcam_kit.metrics.result import MetricResult, Status
from gradcam_kit.metrics.road import arcc, road_combined, road_curve, road_lerf, road_morf
from gradcam_kit.metrics.robustness import infidelity, sensitivity_max
from gradcam_kit.metrics.stability import (
    local_lipschitz,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)
from gradcam_kit.renamed import former_names
from gradcam_kit.similarity import pearson, spearman, ssim

__all__ = [
    "BASELINES",
    "METRICS",
    "Metric",
    "MetricInput",
    "MetricResult",
    "PairedDifference",
    "RandomizationCurve",
    "RankAgreement",
    "Status",
    "adcc",
    "adcc_complexity",
    "adcc_of_means",
    "arcc",
    "average_drop",
    "average_gain",
    "average_increase",
    "average_precision",
    "bounding_boxes",
    "box_accuracy",
    "box_masks",
    "box_overlaps",
    "class_sensitivity",
    "coherency",
    "deletion",
    "efficient_parameter_randomization",
    "entropy",
    "faithfulness_correlation",
    "grid_pointing",
    "hog_correlation",
    "impute",
    "infidelity",
    "insertion",
    "iou",
    "irof",
    "local_lipschitz",
    "mass_accuracy",
    "max_box_accuracy",
    "method_agreement",
    "monotonicity_correlation",
    "otsu_threshold",
    "paired_differences",
    "parameter_randomization",
    "pearson",
    "pixel_average_precision",
    "pixel_histograms",
    "pointing_game",
    "rank_accuracy",
    "rank_agreement",
    "region_perturbation",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
    "road_combined",
    "road_curve",
    "road_lerf",
    "road_morf",
    "sensitivity_max",
    "sensitivity_n",
    "smooth_parameter_randomization",
    "sparseness",
    "spearman",
    "ssim",
    "symmetric_relevance_gain",
    "top_k_intersection",
    "weighted_ioa",
]

__getattr__ = former_names(__name__, {"CONTROLS": "BASELINES", "Case": "MetricInput", "Measured": "MetricResult"})

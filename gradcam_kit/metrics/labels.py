"""Names and units of metrics for printed tables."""

from __future__ import annotations

from dataclasses import dataclass

from gradcam_kit.metrics.registry import METRICS

_SHARE = "0 to 1"
_KNOWN = {
    "pointing-game-15": ("Pointing game, 15 pixels", "hit rate"),
    "pointing-game": ("Pointing game", "hit rate"),
    "mass-accuracy": ("Mass on the object", _SHARE),
    "energy-pointing-game": ("Energy on the object", _SHARE),
    "rank-accuracy": ("Rank accuracy", _SHARE),
    "top-k-intersection": ("Top-k intersection", _SHARE),
    "iou-otsu": ("IoU, Otsu threshold", _SHARE),
    "iou": ("IoU", _SHARE),
    "weighted-ioa": ("Weighted IoA", _SHARE),
    "box-accuracy": ("Box accuracy", "hit rate"),
    "entropy": ("Entropy", "nats"),
    "sparseness": ("Sparseness", _SHARE),
    "deletion": ("Deletion", "area under the score"),
    "insertion": ("Insertion", "area under the score"),
    "average-drop": ("Average drop", "% of the score"),
    "average-increase": ("Average increase", "% of images"),
    "average-gain": ("Average gain", "% of the missing score"),
    "coherency": ("Coherency", _SHARE),
    "adcc-complexity": ("Complexity", _SHARE),
    "adcc": ("ADCC", _SHARE),
    "pixel-ap": ("Pixel AP", _SHARE),
    "road-morf": ("ROAD, most relevant first", _SHARE),
    "road-lerf": ("ROAD, least relevant first", _SHARE),
    "road-combined": ("ROAD, combined", "-0.5 to 0.5"),
    "arcc": ("ARCC", _SHARE),
    "sensitivity-max": ("Max-sensitivity", "relative change"),
    "infidelity": ("Infidelity", "squared score"),
    "srg": ("Symmetric relevance gain", "-1 to 1"),
    "irof": ("IROF", "area over the curve"),
    "region-perturbation": ("Region perturbation", "fall of the score"),
    "sensitivity-n": ("Sensitivity-n", "correlation"),
    "faithfulness-correlation": ("Faithfulness", "correlation"),
    "monotonicity-correlation": ("Monotonicity", "correlation"),
    "local-lipschitz": ("Local Lipschitz", "change per change"),
    "relative-input-stability": ("Relative input stability", "change per change"),
    "relative-output-stability": ("Relative output stability", "change per change"),
    "relative-representation-stability": ("Relative representation stability", "change per change"),
}


@dataclass(frozen=True)
class MetricLabel:
    """The heading of a metric's column in a table.

    Attributes:
        name: name of the metric, as on the command line.
        label: heading of the column.
        unit: unit of the numbers, or their range; "" if unknown.
        better: "higher" or "lower"; "" if neither is better.
    """

    name: str
    label: str
    unit: str
    better: str

    @property
    def note(self) -> str:
        """The unit and the better direction, such as "% of the score, lower is better"."""
        return ", ".join(filter(None, (self.unit, f"{self.better} is better" if self.better else "")))


def metric_label(name: str) -> MetricLabel:
    """Return the heading of a metric's column. That of a user-defined metric is made from the name.

    Example:
        >>> metric_label("average-drop").note
        '% of the score, lower is better'
        >>> metric_label("my-metric").label
        'My metric'
    """
    label, unit = _KNOWN.get(name, (name.replace("-", " ").capitalize(), ""))
    return MetricLabel(name, label, unit, METRICS[name].better if name in METRICS else "")

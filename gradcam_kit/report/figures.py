"""Compute counts and mean heatmaps over the pictures of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from gradcam_kit.jobs.storage.rows import Row, heatmap_of
from gradcam_kit.report.maps import packed, resized

BINS = 20
"""Number of bins of the confidence histogram."""

_MEAN = 16  # height and width of a mean heatmap
_REASON = 100  # maximum number of characters of a displayed reason


@dataclass
class Figures:
    """Counts over all pictures of a run; labels are named as the model names them.

    Attributes:
        pictures: number of pictures, including those that failed.
        failed: number of pictures with an error.
        empty: number of pictures with an empty heatmap.
        right: number of correct predictions.
        judged: number of pictures whose label names a class.
        unjudged: number of pictures whose label does not name a class.
        reasons: number of pictures by the reason of their failure.
        predicted: number of pictures by predicted class.
        labels: number of judged pictures by label.
        right_of: number of correct predictions by label.
        pairs: number of wrong predictions by label and predicted class.
        confidence: (bin, verdict) -> number of pictures. The bin is one of `BINS` in [0, 1], for the score of the
            predicted class; the verdict is "right", "wrong", or "other" for pictures that are not judged.
    """

    pictures: int = 0
    failed: int = 0
    empty: int = 0
    right: int = 0
    judged: int = 0
    unjudged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    right_of: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    confidence: Counter[tuple[int, str]] = field(default_factory=Counter)

    @property
    def histogram(self) -> list[dict[str, int]]:
        """For each bin of the score of the predicted class, the number of right, wrong and other predictions."""
        return [{kind: self.confidence[place, kind] for kind in ("right", "wrong", "other")} for place in range(BINS)]

    @property
    def accuracy(self) -> float | None:
        """The share of correct predictions among pictures whose label names a class."""
        return self.right / self.judged if self.judged else None

    def add(self, rows: list[Row], label: str | None) -> None:
        """Count one picture."""
        first = rows[0]
        self.pictures += 1
        if first["error"] is not None:
            self.failed += 1
            self.reasons[_reason(first["error"])] += 1
        if first["status"] != "ok":
            return
        self.empty += any(row["is_empty"] for row in rows)
        name = class_of(first)
        self.predicted[name] += 1
        verdict = {True: "right", False: "wrong"}.get(first["correct"], "other")
        if first["top_scores"] and 0 <= first["top_scores"][0] <= 1:
            self.confidence[min(int(first["top_scores"][0] * BINS), BINS - 1), verdict] += 1
        if first["correct"] is not None and label is not None:
            self.judged += 1
            self.right += first["correct"]
            self.labels[label] += 1
            self.right_of[label] += first["correct"]
            if not first["correct"]:
                self.pairs[label, name] += 1
        elif label is not None:
            self.unjudged += 1


@dataclass
class Means:
    """Mean heatmaps by class, and by label and wrong prediction, over the part of each picture that the model saw."""

    sums: dict[tuple[str, ...], Float[np.ndarray, "h w"]] = field(default_factory=dict)
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def add(self, rows: list[Row], label: str | None) -> None:
        """Add one picture to the means of its predicted class and, if that is wrong, of its label and prediction."""
        if rows[0]["status"] != "ok":
            return
        for row in rows:
            if row["rank"]:
                continue
            keys: list[tuple[str, ...]] = [(row["method"], class_of(row))]
            if row["correct"] is False and label is not None:
                keys.append((row["method"], label, class_of(row)))
            small = resized(heatmap_of(row), (_MEAN, _MEAN))
            for key in keys:
                self.sums[key] = self.sums[key] + small if key in self.sums else small
                self.counts[key] += 1

    def mean(self, *key: str) -> Float[np.ndarray, "h w"] | None:
        """Return the mean heatmap for a method and a class, or a method, a label and a class; None without pictures."""
        return self.sums[key] / self.counts[key] if key in self.sums else None

    def packed(self, *key: str) -> str | None:
        """Return a mean heatmap encoded for the page, scaled so that its largest value gets the hottest color."""
        mean = self.mean(*key)
        return None if mean is None else packed(mean / max(float(mean.max()), 1e-9))


def class_of(row: Mapping[str, Any]) -> str:
    """Return the predicted class for display."""
    if row["predicted_name"] is not None:
        return str(row["predicted_name"])
    return "unknown" if row["predicted"] is None else str(row["predicted"])


def _reason(error: str) -> str:
    """Return an error without its picture-specific parts, as far as they can be recognized."""
    return ": ".join(error.split(": ")[:3])[:_REASON]

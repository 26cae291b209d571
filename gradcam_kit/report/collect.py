"""What the page about a run shows, gathered in one pass over its rows."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from gradcam_kit.jobs.measuring import MetricMeans
from gradcam_kit.jobs.pipeline import has_thumbnail
from gradcam_kit.jobs.rows import Row, heatmap_of
from gradcam_kit.jobs.store import Store

MOST_PICTURES = 10_000
"""Pictures that the page shows; of more, a sample that is spread evenly. The figures are those of all."""

_INLINE = 300  # pictures whose thumbnails are in the page itself, so that it can be sent to somebody
_FINEST, _MEAN = 32, 16  # sides of a heatmap on the page, and of the mean of many
_PAIRS = 200


@dataclass
class Figures:
    """Counts over all pictures of a run."""

    pictures: int = 0
    failed: int = 0
    empty: int = 0
    right: int = 0
    judged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    right_of: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def accuracy(self) -> float | None:
        """Share of the pictures whose label names a class that are predicted right."""
        return self.right / self.judged if self.judged else None

    def add(self, rows: list[Row]) -> None:
        """Count one picture."""
        first = rows[0]
        self.pictures += 1
        self.failed += first["error"] is not None
        if first["status"] != "ok":
            self.reasons[first["error"].partition(":")[0]] += 1
            return
        self.empty += any(row["is_empty"] for row in rows)
        name = class_of(first)
        self.predicted[name] += 1
        if first["correct"] is not None:
            self.judged += 1
            self.right += first["correct"]
            self.labels[first["label"]] += 1
            self.right_of[first["label"]] += first["correct"]
            if not first["correct"]:
                self.pairs[first["label"], name] += 1


@dataclass
class Means:
    """Mean heatmaps, over the part of the picture that the model saw."""

    sums: dict[tuple[str, ...], Float[np.ndarray, "h w"]] = field(default_factory=dict)
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def add(self, rows: list[Row]) -> None:
        """Add one picture to the means of its class, and of its pair of label and prediction."""
        if rows[0]["status"] != "ok":
            return
        for row in rows:
            if row["rank"]:
                continue
            keys: list[tuple[str, ...]] = [(row["method"], class_of(row))]
            if row["correct"] is False:
                keys.append((row["method"], row["label"], class_of(row)))
            small = _resized(heatmap_of(row), (_MEAN, _MEAN))
            for key in keys:
                self.sums[key] = self.sums[key] + small if key in self.sums else small
                self.counts[key] += 1

    def packed(self, *key: str) -> str | None:
        """A mean as the page reads it; its largest value becomes the hottest color."""
        if key not in self.sums:
            return None
        mean = self.sums[key] / self.counts[key]
        return _packed(mean / max(float(mean.max()), 1e-9))


@dataclass
class Collected:
    """All that the page shows; `thumbnails` are files beside it, for runs too large to hold them in the page."""

    figures: Figures
    methods: list[str]
    pictures: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    thumbnails: dict[str, bytes]
    measured: list[dict[str, Any]]


def collect(store: Store, metrics: Sequence[str] = ()) -> Collected:
    """Read the rows of all shards once, and what was measured of them: `metrics` by the run, others later."""
    figures, means, measured = Figures(), Means(), MetricMeans()
    methods: dict[str, None] = {}
    numbers = sorted(store.complete())
    total = sum(store.counts(number).pictures for number in numbers)
    pictures: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    position = 0
    for number in numbers:
        thumbnails = store.read_thumbnails(number)
        all_rows = store.read_shard(number)
        measured.add(all_rows, metrics)
        later, settings = store.read_metrics(number)
        measured.add(later, [name for name in settings if name not in metrics])
        for rows in by_picture(all_rows):
            methods.update(dict.fromkeys(row["method"] for row in rows))
            figures.add(rows)
            means.add(rows)
            if has_thumbnail(position, total, MOST_PICTURES):
                picture = _picture(rows)
                jpeg = thumbnails.get(rows[0]["path"])
                if jpeg is not None and total <= _INLINE:
                    picture["thumb"] = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
                elif jpeg is not None:
                    picture["thumb"] = f"report/{number:05}/{len(pictures)}.jpg"
                    files[picture["thumb"]] = jpeg
                pictures.append(picture)
            position += 1
    names = list(methods)
    classes = [
        {
            "name": name,
            "count": count,
            "labeled": figures.labels[name],
            "right": figures.right_of[name],
            "maps": {method: means.packed(method, name) for method in names},
        }
        for name, count in figures.predicted.most_common(_PAIRS)
    ]
    pairs = [
        {
            "label": label,
            "predicted": name,
            "count": count,
            "maps": {method: means.packed(method, label, name) for method in names},
        }
        for (label, name), count in figures.pairs.most_common(_PAIRS)
    ]
    return Collected(figures, names, pictures, classes, pairs, files, measured.lines())


def by_picture(rows: list[Row]) -> list[list[Row]]:
    """The rows of each picture, which follow each other."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["path"]].append(row)
    return list(groups.values())


def class_of(row: Mapping[str, Any]) -> str:
    """The predicted class as a person reads it."""
    if row["predicted_name"] is not None:
        return str(row["predicted_name"])
    return "unknown" if row["predicted"] is None else str(row["predicted"])


def _picture(rows: list[Row]) -> dict[str, Any]:
    first = rows[0]
    if first["status"] != "ok":
        return {"path": first["path"], "label": first["label"], "error": first["error"], "maps": []}
    tops = zip(first["top_targets"], first["top_names"], first["top_scores"], strict=True)
    return {
        "path": first["path"],
        "label": first["label"],
        "error": first["error"],
        "class": class_of(first),
        "correct": first["correct"],
        "score": round(first["top_scores"][0], 4) if first["top_scores"] else None,
        "top": [[name if name is not None else str(index), round(score, 4)] for index, name, score in tops],
        "size": [first["picture_width"], first["picture_height"]],
        "box": [round(value, 1) for value in first["box"]],
        "maps": [_map(row) for row in rows],
    }


def _map(row: Row) -> dict[str, Any]:
    stored = heatmap_of(row)
    size = min(stored.shape[0], _FINEST), min(stored.shape[1], _FINEST)
    target = row["target_name"] if row["target_name"] is not None else row["target"]
    return {
        "method": row["method"],
        "layer": row["layer"],
        "target": None if target is None else str(target),
        "score": None if row["score"] is None else round(row["score"], 4),
        "empty": row["is_empty"],
        "size": list(size),
        "values": _packed(_resized(stored, size)),
    }


def _resized(heatmap: np.ndarray, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    values = heatmap.astype(np.float32)
    if values.shape == size:
        return values
    shrinks = values.shape[0] >= size[0] and values.shape[1] >= size[1]
    smaller: np.ndarray = cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return smaller


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.rint(values.clip(0, 1) * 255).astype(np.uint8).tobytes()).decode()

"""Collect the content of a run's report in one pass over its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradcam_kit.jobs.engines.local import has_thumbnail
from gradcam_kit.jobs.storage.rows import Row
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.measuring import MetricMeans
from gradcam_kit.pages import data_uri
from gradcam_kit.report.figures import Figures, Means, class_of
from gradcam_kit.report.maps import FINEST, rounded, shown_map, side_of
from gradcam_kit.report.notes import in_words
from gradcam_kit.targets.names import normalized

MOST_PICTURES = 10_000
"""Maximum number of pictures on the page; larger runs are sampled evenly. The figures cover all pictures."""

MOST_FAILURES = 10_000
"""Maximum number of failures that the page shows in addition to the sample of pictures."""

ENTRIES = 200
"""Maximum number of classes, and of pairs of label and wrong prediction, on the page: the most frequent ones."""

_INLINE = 300  # maximum number of pictures with embedded thumbnails, which keep the page a single file

Keep = Callable[[str, bytes], None]
"""Function that stores a file beside the page, given its name and content."""


@dataclass
class Collected:
    """The data that the page shows.

    Attributes:
        figures: counts over all pictures of the run.
        methods: names of the methods.
        pictures: the pictures of the page, each with its label, prediction and heatmaps.
        classes: per class, the counts of predictions and labels, and the mean heatmap of each method.
        pairs: per pair of label and wrong prediction, the count and the mean heatmap of each method.
        measured: a line per method and metric, see `MetricMeans.lines`.
        settings: the settings of each metric, by its name.
        sampled: whether the page shows only a sample of the pictures.
        hidden_failures: number of failures that the page does not show.
    """

    figures: Figures
    methods: list[str]
    pictures: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    measured: list[dict[str, Any]]
    settings: dict[str, Any]
    sampled: bool = False
    hidden_failures: int = 0


@dataclass
class _Page:
    """The pictures of the page, collected one by one."""

    store: Store
    manifest: Mapping[str, Any]
    keep: Keep
    side: int = FINEST
    pictures: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0
    hidden: int = 0

    def __post_init__(self) -> None:
        self.total: int = self.manifest["pictures"]

    def add(self, position: int, rows: list[Row], label: str | None, thumbnail: bytes | None) -> None:
        """Put a picture on the page if it belongs to the sample, or failed and the page has room for failures."""
        if not has_thumbnail(position, self.total, MOST_PICTURES):
            if rows[0]["error"] is None:
                return
            if self.failures >= MOST_FAILURES:
                self.hidden += 1
                return
            self.failures += 1
        picture = self._picture(rows, label)
        overlays = self.manifest["overlays"]
        if rows[0]["error"] is None and (overlays is None or position < overlays):
            for row, shown in zip(rows, picture["maps"], strict=True):
                shown["overlay"] = self.store.overlay_name(row["path"], row["method"], row["rank"])
        if thumbnail is not None and self.total <= _INLINE:
            picture["thumb"] = data_uri(thumbnail, "jpeg")
        elif thumbnail is not None:
            picture["thumb"] = (
                f"report/{position // 1000:05}/{position}.jpg"  # deterministic, so that the page can be reproduced
            )
            self.keep(picture["thumb"], thumbnail)
        self.pictures.append(picture)

    def _picture(self, rows: list[Row], label: str | None) -> dict[str, Any]:
        first = rows[0]
        error = None if first["error"] is None else in_words(first["error"])
        shown = {"path": first["path"], "label": label, "error": error, "maps": []}
        if first["status"] != "ok":
            return shown
        tops = zip(first["top_targets"], first["top_names"], first["top_scores"], strict=True)
        return {
            **shown,
            "class": class_of(first),
            "correct": first["correct"],
            "score": rounded(first["top_scores"][0]) if first["top_scores"] else None,
            "top": [[name if name is not None else str(index), rounded(score)] for index, name, score in tops],
            "size": [first["picture_width"], first["picture_height"]],
            "box": [round(value, 1) for value in first["box"]],
            "maps": [shown_map(row, self.side) for row in rows],
        }


def collect(store: Store, manifest: Mapping[str, Any], keep: Keep) -> Collected:
    """Read the rows of all shards once, with the metrics measured during the run or later.

    Args:
        store: storage of the shards.
        manifest: the content of `run.json`.
        keep: called with each thumbnail, if there are too many thumbnails to embed in the page.
    """
    figures, means, measured = Figures(), Means(), MetricMeans()
    metrics, names = dict(manifest.get("metrics", {})), manifest["class_names"]
    known = dict(metrics)
    methods: dict[str, None] = {}
    page = _Page(store, manifest, keep)
    for number in sorted(store.complete()):
        thumbnails = store.read_thumbnails(number)
        all_rows = store.read_shard(number)
        later, settings = store.read_metrics(number)
        known |= settings
        measured.add(all_rows, [name for name in metrics if name not in settings])
        measured.add([] if later is None else later.to_pylist(), list(settings))
        groups = by_picture(all_rows)
        page.side = min(page.side, side_of(min(page.total, MOST_PICTURES) * max(map(len, groups), default=1)))
        for position, rows in enumerate(groups, number * manifest["shard_size"]):
            methods.update(dict.fromkeys(row["method"] for row in rows))
            label = label_of(rows[0], names)
            figures.add(rows, label)
            means.add(rows, label)
            page.add(position, rows, label, thumbnails.get(rows[0]["path"]))
    classes = [name for name, _ in figures.predicted.most_common()]
    classes += [name for name, _ in figures.labels.most_common() if name not in figures.predicted]
    return Collected(
        figures,
        list(methods),
        page.pictures,
        [
            {
                "name": name,
                "count": figures.predicted[name],
                "labeled": figures.labels[name],
                "right": figures.right_of[name],
                "maps": {method: means.packed(method, name) for method in methods},
            }
            for name in classes[:ENTRIES]
        ],
        [
            {
                "label": label,
                "predicted": name,
                "count": count,
                "maps": {method: means.packed(method, label, name) for method in methods},
            }
            for (label, name), count in figures.pairs.most_common(ENTRIES)
        ],
        measured.lines(),
        known,
        sampled=page.total > MOST_PICTURES,
        hidden_failures=page.hidden,
    )


def by_picture(rows: list[Row]) -> list[list[Row]]:
    """Return the rows grouped by picture, in the order in which the pictures first occur."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["path"]].append(row)
    return list(groups.values())


def label_of(row: Mapping[str, Any], names: Sequence[str] | None) -> str | None:
    """Return the label for display: the class name for an index or another spelling, else the label itself."""
    label: str | None = row["label"]
    if label is not None and row["correct"] is not None and names is not None and label not in names:
        label = next((name for name in names if normalized(name) == normalized(label)), label)
    if label is None or row["correct"] is None or names is None or not label.isdecimal() or label in names:
        return label
    return names[int(label)] if int(label) < len(names) else label

"""The result of a comparison, and its representations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.comparison.compared import MethodCost
from gradcam_kit.comparison.gallery import (
    COLUMNS,
    Cell,
    Panel,
    flat_maps,
    format_value,
    render_figure,
    render_page,
)
from gradcam_kit.comparison.statistics import Statistics, frame
from gradcam_kit.comparison.writing import write_comparisons
from gradcam_kit.methods import Explanation
from gradcam_kit.metrics import MetricResult, Status
from gradcam_kit.metrics.labels import metric_label
from gradcam_kit.metrics.registry import described
from gradcam_kit.pixels.pictures import RGB
from gradcam_kit.renamed import warn_of_former_name
from gradcam_kit.targets.scores import WORDS, ScoreKind, are_probabilities

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_SHOWN = 16


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Statistics):
    """Heatmaps of the same images from several methods, with metrics and costs. Notebooks display it as a page.

    Attributes:
        heatmaps: label of a method -> `(n, [m,] *t)` in [0, 1].
        explanations: label -> explanation; none for baselines, which do not use a model.
        measured: label -> metric -> result, with one value per image and target, all targets of the first image first.
        baselines: label -> metric -> result of the additional baselines, which the summary shows last.
        costs: label -> cost of the method for one image, without sharing passes; none for baselines.
        targets: class indices `(n, [m])`, or None for a target that is a callable.
        scores: scores of the targets `(n, [m])`, for classes of the kind `score_kind`; None if unknown.
        other_scores: label -> scores that a method's own model gives, for methods on another model.
        pictures: the pictures on which the heatmaps are shown.
        names: names of the images.
        class_names: names of the classes, if known.
        score_kind: kind of the class scores, see `compare`; None if the output has no class scores.
        model_name: name of the model in titles.
        left_out: label -> why the method does not suit the model; only for `methods="all"` and for the BalancedCAM of
            the default methods.
    """

    heatmaps: Mapping[str, Float[Tensor, "n *mt"]]
    explanations: Mapping[str, Explanation]
    measured: Mapping[str, Mapping[str, MetricResult]]
    costs: Mapping[str, MethodCost]
    targets: Int[Tensor, "n *m"] | None
    scores: Float[Tensor, "n *m"] | None
    pictures: Sequence[RGB]
    names: Sequence[str]
    class_names: Sequence[str] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, MetricResult]] = field(default_factory=dict)
    other_scores: Mapping[str, Float[Tensor, "n *m"]] = field(default_factory=dict)
    score_kind: ScoreKind | None = None
    model_name: str = ""

    @property
    def controls(self) -> Mapping[str, Mapping[str, MetricResult]]:
        """Return `baselines`, whose former name this is."""
        warn_of_former_name("Comparison.controls", "baselines")
        return self.baselines

    @property
    def table(self) -> pandas.DataFrame:
        """Return one row per image, target and method: class, score, metrics (NaN where undefined), cost.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame(self.rows())

    @property
    def summary(self) -> pandas.DataFrame:
        """Return one row per method and baseline: means of the metrics, number of images with status OK, and cost.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame(self.summary_rows()).set_index("method")

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `table` as plain values."""
        empty = {label: (maps.flatten(1) <= 0).all(1).tolist() for label, maps in self._folded().items()}
        values = self._values()
        other = self._other_scores()
        found = []
        for place, (name, target, score) in enumerate(self._explained()):
            for label in self.heatmaps:
                explanation = self.explanations.get(label)
                found.append(
                    {
                        "image": name,
                        "method": label,
                        "layer": "+".join(explanation.layers) if explanation else "",
                        "target": target,
                        "target_name": self._class_name(target),
                        "score": other[label][place] if label in other else score,
                        "is_empty": empty[label][place],
                        **{metric: column[place] for metric, column in values[label].items()},
                        **self._statuses(label, place),
                        **self._cost(label),
                    }
                )
        return found

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return the rows of `summary` as plain values."""
        found = []
        for label in [*self.heatmaps, *self.baselines]:
            row: dict[str, Any] = {"method": label}
            for metric, one in {**self.measured, **self.baselines}.get(label, {}).items():
                # The all-ones baseline is constant by design, so its values are all flagged as degenerate. Show their
                # unfiltered mean, with a count of 0.
                by_formula = label not in self.explanations and not one.ok.any()
                shown = one.values.nanmean() if by_formula else one.mean
                row |= {metric: float(shown), f"{metric} n": int(one.count)}
            found.append(row | self._cost(label))
        return found

    @property
    def notes(self) -> list[str]:
        """The better direction of each metric, and the settings with which it was measured."""
        found = {name: one.settings for own in self.measured.values() for name, one in own.items()}
        return described(found)

    def plot(self, *, columns: int = COLUMNS, alpha: float = 0.5) -> Figure:
        """Return a matplotlib figure with the images below each other.

        Args:
            columns: maximum number of pictures in a row, the image itself included.
            alpha: opacity of the heatmaps.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return render_figure(self.panels(), columns, alpha=alpha)

    def save(self, path: str | PathLike[str], *, columns: int = COLUMNS) -> None:
        """Write a page (.html), the table (.csv), one picture (.png, .jpg, ...) or the figure (.pdf, .svg).

        Args:
            path: output file; its folder is created if it is missing.
            columns: maximum number of pictures in a row of a picture or figure, the image itself included.

        Raises:
            PictureError: an unknown suffix, or a path that cannot be written to.
            MissingExtraError: .pdf or .svg, and matplotlib is not installed.
        """
        write_comparisons(Path(path), [self], columns)

    def page(self, most: int = _SHOWN) -> str:
        """Return the first `most` images as HTML that needs neither network nor kernel, with an opacity slider."""
        labels, n = len(self.heatmaps), len(self.names)
        head = f"{labels} method{'s' * (labels != 1)} on {n} image{'s' * (n != 1)}"
        notes = [f"and {n - most} more images"] if n > most else []
        notes += [
            f"left out, because it does not suit the model: {label} ({why})" for label, why in self.left_out.items()
        ]
        if self.targets is not None and self.score_kind in ("sigmoid", "raw"):
            notes.append(f"the score of a class is {WORDS[self.score_kind]}")
        notes += self.notes
        tables = {"means and costs": self.summary_rows() if self.costs or self.measured else []}
        return render_page(self.panels(most), head, tables, notes)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.heatmaps)}; {len(self.names)} images)"

    def _repr_html_(self) -> str:
        return self.page()

    def panels(self, most: int | None = None) -> list[Panel]:
        """Return a panel for each of the first `most` images and each of its targets."""
        maps = {label: flat_maps(one).float().cpu().numpy() for label, one in self._folded(most).items()}
        values = self._values()
        other = self._other_scores()
        panels = []
        for place, (name, target, score) in enumerate(self._explained(most)):
            cells = []
            for label, heatmaps in maps.items():
                notes = [
                    f"{metric_label(metric).label} {format_value(column[place])}"
                    for metric, column in values[label].items()
                ]
                if label in other:
                    notes.insert(0, self._said(target, other[label][place]))
                if not heatmaps[place].any():
                    notes.insert(0, "no positive evidence")
                cells.append(Cell(heatmaps[place], label, tuple(notes)))
            picture = self.pictures[place // self._targets_per_image]
            panels.append(Panel(picture, name, self._said(target, score), tuple(cells)))
        return panels

    @property
    def _targets_per_image(self) -> int:
        return 1 if self.scores is None or self.scores.ndim == 1 else self.scores.shape[1]

    def _explained(self, most: int | None = None) -> list[tuple[str, int | None, float | None]]:
        """Return name, target and score of every explained target, image by image."""
        names = [name for name in self.names[:most] for _ in range(self._targets_per_image)]
        targets = [None] * len(names) if self.targets is None else self.targets.flatten().tolist()
        scores = [None] * len(names) if self.scores is None else self.scores.flatten().tolist()
        return list(zip(names, targets, scores, strict=False))

    def _other_scores(self) -> dict[str, list[float]]:
        return {label: scores.flatten().tolist() for label, scores in self.other_scores.items()}

    def _folded(self, most: int | None = None) -> dict[str, Float[Tensor, "nm *t"]]:
        """Return label -> heatmaps of the first `most` images, with the axes of images and targets merged."""
        axes = 1 if self.scores is None else self.scores.ndim
        return {label: maps[:most].flatten(0, axes - 1) for label, maps in self.heatmaps.items()}

    def _values(self) -> dict[str, dict[str, list[float]]]:
        """Return label -> metric -> numbers, NaN where the status is not OK, so that a constant map cannot be best."""
        found = {label: self.measured.get(label, {}) for label in self.heatmaps}
        return {
            label: {name: one.values.where(one.ok, torch.nan).tolist() for name, one in own.items()}
            for label, own in found.items()
        }

    def _statuses(self, label: str, place: int) -> dict[str, str]:
        """Return the status of each number, by metric."""
        own = self.measured.get(label, {})
        return {f"{name} status": Status(int(one.status[place])).name.lower() for name, one in own.items()}

    def _cost(self, label: str) -> dict[str, float]:
        """Return the cost of a method by column of the table; empty if costs were not measured."""
        return vars(self.costs.get(label, MethodCost())) if self.costs else {}

    def _class_name(self, target: int | None) -> str | None:
        names = self.class_names
        return names[target] if names is not None and target is not None and target < len(names) else None

    def _said(self, target: int | None, score: float | None) -> str:
        if target is None:
            return "" if score is None else f"score {score:.3g}"
        said = f"{score:.0%}" if are_probabilities(self.score_kind) else f"score {score:.3g}"
        return f"{self._class_name(target) or f'class {target}'}, {said}"

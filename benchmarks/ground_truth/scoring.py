"""Score the maps of every method and every baseline on one subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit import METHODS
from gradcam_kit.errors import GradCamKitError
from gradcam_kit.metrics import BASELINES, mass_accuracy
from gradcam_kit.types import LayerChoice

# smaller budgets than by default, for methods that take many passes
OPTIONS: dict[str, dict[str, Any]] = {
    "ss-cam": {"samples": 4},
    "is-cam": {"samples": 4},
    "sess": {"scales": 4},
    "integrated-grad-cam": {"steps": 10},
    "rise": {"masks": 200},
}
SLOW = ("score-cam", "ss-cam", "is-cam", "sess", "rise")
THIRD = dict.fromkeys(SLOW, 3)
SIXTH = {**dict.fromkeys(SLOW, 6), "score-cam": 3}
"""Slow methods see a third of the images, or a sixth (Score-CAM a third) if many networks are trained."""
DRAWS = {"random": 10, "random-cam": 5}
"""Number of draws of purely random methods and baselines; the score of an image is the mean over its draws."""

SURE = 0.9
"""Networks with a lower accuracy are left out, because the truth is unknown for images that they misclassify."""
DELETION = ", deletion"
"""Suffix of the columns with the deletion scores of maps, where lower is better."""
TRUTHS = ("true mask", "true mask, 8 x 8")
"""Rows of the deletion columns: the mask that a map should equal, and the same mask at the resolution of the maps."""


def is_deletion(column: str) -> bool:
    """Whether a column has deletion scores: lower is better, and no score is a share of the map."""
    return column.endswith(DELETION)


@dataclass(frozen=True)
class Plan:
    """The extent of a run.

    Attributes:
        methods: names of the scored methods.
        scale: factor for the numbers of images and of training steps.
        seed: seed of images and networks.
        networks: number of trained networks per column.
    """

    methods: Sequence[str] = tuple(METHODS)
    scale: float = 1.0
    seed: int = 0
    networks: int = 5

    def count(self, images: int) -> int:
        """Return a number of images or training steps times the scale of the run, at least 2."""
        return max(2, round(self.scale * images))

    def of_network(self, number: int) -> Plan:
        """Return the plan with a seed for this network, so that no two networks share weights or images."""
        return replace(self, seed=self.seed + 1000 * number)


@dataclass(frozen=True)
class Subject:
    """A model, a layer and images; `masks` mark the truth: `(n, *t)`, or `(n, m, *t)` for `(n, m)` targets."""

    model: nn.Module
    layer: str
    images: Tensor
    targets: Tensor
    masks: Tensor
    parts: Mapping[str, int] = field(default_factory=dict)
    """Slow method -> k if it sees only 1/k of the images; all other methods see all images."""
    has_tokens: bool = False
    """Whether methods that choose layers of tokens use their own choice instead of `layer`."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Method -> options, which take precedence over those in `OPTIONS`."""


@dataclass
class Found:
    """The scores of each row of the table, and why other rows have none.

    Attributes:
        scores: one score per image, or `(n, m)` if each of n images has m targets; NaN for a missing score.
        skipped: row -> why it has no scores.
        notes: further measurements; `accuracy` is the share of images that the network classifies correctly.
    """

    scores: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """The results of one column of the table: for each row, the scores of the images of each network.

    Attributes:
        scores: row -> network -> images, or images and targets.
        skipped: row -> why it has no scores.
        notes: the notes of each network.
        left_out: results of networks whose accuracy is below `SURE`.
    """

    scores: dict[str, list[Tensor]]
    skipped: dict[str, str]
    notes: list[dict[str, Any]]
    left_out: list[Found] = field(default_factory=list)

    @classmethod
    def of(cls, found: Sequence[Found]) -> Column:
        """Join the results of accurate networks, or of all networks if none is accurate.

        A row is included only if it has scores for every joined network.
        """
        sure = [one.notes.get("accuracy", 1.0) >= SURE for one in found]
        counted = [one for one, is_sure in zip(found, sure, strict=True) if is_sure or not any(sure)]
        left_out = [one for one, is_sure in zip(found, sure, strict=True) if not is_sure and any(sure)]
        skipped = {row: reason for one in counted for row, reason in one.skipped.items()}
        rows = [row for row in counted[0].scores if all(row in one.scores for one in counted)]
        scores = {row: [one.scores[row] for one in counted] for row in rows}
        return cls(scores, skipped, [one.notes for one in counted], left_out)

    @property
    def accuracies(self) -> list[float]:
        """Return the accuracies of the included networks; empty if the test does not classify."""
        return [float(one["accuracy"]) for one in self.notes if "accuracy" in one]

    @property
    def accuracies_left_out(self) -> list[float]:
        """Return the accuracies of the networks that are left out."""
        return [float(one.notes["accuracy"]) for one in self.left_out]


Measure = Callable[[Tensor, Tensor], Tensor]
"""A function from heatmaps and masks, both `(r, *t)`, to a score for each heatmap; NaN for a missing score."""


def share(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the map inside the mask; NaN for an empty map. A constant map is at the chance level."""
    return mass_accuracy(heatmaps, masks).values


def score_all(subject: Subject, plan: Plan, measure: Measure = share) -> Found:
    """Score the maps of all applicable methods and of the baselines.

    The score of a map that is drawn several times is the mean over its nonempty draws;
    `notes["draws"]` has the mean score of each draw.
    """
    [found] = score_each(subject, plan, [measure])
    return found


def score_each(subject: Subject, plan: Plan, measures: Sequence[Measure]) -> list[Found]:
    """Score the same maps by several measures; return the scores by each measure as `score_all` does."""
    skipped: dict[str, str] = {}
    draws: list[dict[str, list[Tensor]]] = [{} for _ in measures]
    for row, heatmaps in explain_all(subject, plan, skipped):
        masks = subject.masks[: len(heatmaps)]
        leading = masks.shape[: masks.ndim - (subject.images.ndim - 2)]
        flat = [maps.reshape(-1, *maps.shape[len(leading) :]) for maps in (heatmaps, masks)]
        for measure, own in zip(measures, draws, strict=True):
            values = measure(*flat)
            own.setdefault(row, []).append(values.unflatten(0, leading) if len(leading) == 2 else values)
    return [found_of(own, skipped) for own in draws]


def found_of(draws: Mapping[str, Sequence[Tensor]], skipped: Mapping[str, str] | None = None) -> Found:
    """Average the scores of each row over its draws; a row that is not random has one draw."""
    scores = {row: torch.stack([*own]).nanmean(0) for row, own in draws.items()}
    means = {row: [_number(one.nanmean()) for one in own] for row, own in draws.items() if len(own) > 1}
    return Found(scores, dict(skipped or {}), {"draws": means} if means else {})


def _number(value: Tensor) -> float | None:
    """Return a number for JSON; None if it is undefined."""
    return float(value) if value.isfinite() else None


def explain_all(subject: Subject, plan: Plan, skipped: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the heatmaps of each applicable method and each baseline; `skipped` receives the reasons for all others.

    Methods and baselines that are purely random have several draws.
    """
    for name in plan.methods:
        some = -(-len(subject.images) // subject.parts.get(name, 1))
        try:
            for draw in range(DRAWS.get(name, 1)):
                yield name, explain(name, subject, some, **({"seed": plan.seed + draw} if name in DRAWS else {}))
        except GradCamKitError as error:
            skipped[name] = str(error).partition(";")[0]
    for name, baseline in BASELINES.items():
        for draw in range(DRAWS.get(name, 1)):
            heatmaps = baseline(subject.images, plan.seed + draw, torch.arange(len(subject.images)))
            if subject.targets.ndim == 2:
                heatmaps = heatmaps[:, None].expand(-1, subject.targets.shape[1], *heatmaps.shape[1:])
            yield name, heatmaps


def explain(name: str, subject: Subject, some: int, **options: Any) -> Tensor:
    """Return the heatmaps of a method for the first images, at the subject's layer or at layers of the method."""
    method = METHODS[name]
    layer = subject.layer if takes_layer(name, subject.has_tokens) else None
    cam = method(subject.model, layer, **{**OPTIONS.get(name, {}), **subject.options.get(name, {}), **options})
    return cam(subject.images[:some], subject.targets[:some])


def takes_layer(name: str, has_tokens: bool = False) -> bool:
    """Whether a method explains the subject's layer; some methods are defined by layers of their own."""
    choice = METHODS[name].layer_choice
    return choice is LayerChoice.LAST or (choice is LayerChoice.STREAM and not has_tokens)


@dataclass(frozen=True)
class Test:
    """A column of the table, or several columns that share work; `question` and `score` describe it for readers."""

    name: str
    question: str
    score: str
    run: Callable[[Plan], Mapping[str, Found]]
    """Function that runs the test and returns its columns by name."""
    has_networks: bool = False
    """Whether networks are trained or drawn from the seed, so that the test runs once for each network."""
    group: str = ""
    """Tests of one group explain the same networks, and run one after the other in one process."""

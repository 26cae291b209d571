"""Every method and every baseline on one subject, and what is measured of their maps."""

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

# Fewer draws than in the papers, and fewer images, where a map takes hundreds of passes.
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
"""Of so many images slow methods see one: where many networks are trained each of them sees few."""
DRAWS = {"random": 10, "random-cam": 5}
"""What is random alone is drawn so many times, and an image's score is the mean of its draws."""

SURE = 0.9
"""Networks that name a smaller share of their images right are left out: where they err, the truth is unknown."""
DELETION = ", deletion"
"""What is added to the name of a column for the deletion scores of its maps, of which lower ones are better."""
TRUTHS = ("true mask", "true mask, 8 x 8")
"""Rows of deletion: the mask that a map should be, and as coarse as maps are."""


def is_deletion(column: str) -> bool:
    """Whether lower is better, and no score is a share of the map."""
    return column.endswith(DELETION)


@dataclass(frozen=True)
class Plan:
    """What is run: which methods, how many images of each test, how many networks, and how long they are trained."""

    methods: Sequence[str] = tuple(METHODS)
    scale: float = 1.0
    seed: int = 0
    networks: int = 5

    def count(self, images: int) -> int:
        """So many images, or fewer in a quick run."""
        return max(2, round(self.scale * images))

    def of_network(self, number: int) -> Plan:
        """The same with seeds of its own, so that weights and pictures of two networks have nothing in common."""
        return replace(self, seed=self.seed + 1000 * number)


@dataclass(frozen=True)
class Subject:
    """A model, a layer and images; `masks` say where the truth is: `(n, *t)`, or `(n, m, *t)` for `(n, m)` targets."""

    model: nn.Module
    layer: str
    images: Tensor
    targets: Tensor
    masks: Tensor
    parts: Mapping[str, int] = field(default_factory=dict)
    """Of how many images a method sees one; all others see all."""
    has_tokens: bool = False
    """Whether methods that choose layers of tokens do so, in place of `layer`."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of methods that take still less than in `OPTIONS`."""


@dataclass
class Found:
    """The scores of each row of the table, and why others have none.

    Attributes:
        scores: one per image, or `(n, m)` where each of n images has m targets; NaN where there is none.
        skipped: row -> why there are no scores.
        notes: what else was measured; `accuracy` is the share of its images that the network names right.
    """

    scores: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """What was found of one column of the table: of each row the scores of each network's images, one after the other.

    Attributes:
        scores: row -> network -> images, or images and targets.
        skipped: row -> why there are no scores.
        notes: of each network.
        left_out: what was found with networks that name less than `SURE` of their images right.
    """

    scores: dict[str, list[Tensor]]
    skipped: dict[str, str]
    notes: list[dict[str, Any]]
    left_out: list[Found] = field(default_factory=list)

    @classmethod
    def of(cls, found: Sequence[Found]) -> Column:
        """Join the networks that are sure, or all if none is; a row has scores where all have some."""
        sure = [one.notes.get("accuracy", 1.0) >= SURE for one in found]
        counted = [one for one, is_sure in zip(found, sure, strict=True) if is_sure or not any(sure)]
        left_out = [one for one, is_sure in zip(found, sure, strict=True) if not is_sure and any(sure)]
        skipped = {row: reason for one in counted for row, reason in one.skipped.items()}
        rows = [row for row in counted[0].scores if all(row in one.scores for one in counted)]
        scores = {row: [one.scores[row] for one in counted] for row in rows}
        return cls(scores, skipped, [one.notes for one in counted], left_out)

    @property
    def accuracies(self) -> list[float]:
        """Of the networks that count; none where nothing is named."""
        return [float(one["accuracy"]) for one in self.notes if "accuracy" in one]

    @property
    def accuracies_left_out(self) -> list[float]:
        """Of those that do not."""
        return [float(one.notes["accuracy"]) for one in self.left_out]


Measure = Callable[[Tensor, Tensor], Tensor]
"""From heatmaps and masks, both `(r, *t)`, to a score for each, NaN where there is none."""


def share(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of the map that lies where the truth is; NaN for an empty map. A constant map has the chance level."""
    return mass_accuracy(heatmaps, masks).values


def score_all(subject: Subject, plan: Plan, measure: Measure = share) -> Found:
    """Measure the maps of all methods that apply, and of the baselines.

    The score of a map that is drawn several times is the mean over its draws without the empty ones;
    `notes["draws"]` keeps the mean of each draw over its maps.
    """
    [found] = score_each(subject, plan, [measure])
    return found


def score_each(subject: Subject, plan: Plan, measures: Sequence[Measure]) -> list[Found]:
    """As `score_all`, by several measures of the same maps."""
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
    """Combine the scores of each row's draws; a row without random draws has one."""
    scores = {row: torch.stack([*own]).nanmean(0) for row, own in draws.items()}
    means = {row: [_number(one.nanmean()) for one in own] for row, own in draws.items() if len(own) > 1}
    return Found(scores, dict(skipped or {}), {"draws": means} if means else {})


def _number(value: Tensor) -> float | None:
    """A number of JSON; none where it is not defined."""
    return float(value) if value.isfinite() else None


def explain_all(subject: Subject, plan: Plan, skipped: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The heatmaps of each method that applies and of each baseline; `skipped` gets the reasons of the others.

    What is random alone comes several times under its name.
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
    """Heatmaps as the method returns them, at the subject's layer."""
    method = METHODS[name]
    layer = subject.layer if takes_layer(name, subject.has_tokens) else None
    cam = method(subject.model, layer, **{**OPTIONS.get(name, {}), **subject.options.get(name, {}), **options})
    return cam(subject.images[:some], subject.targets[:some])


def takes_layer(name: str, has_tokens: bool = False) -> bool:
    """Whether a method explains the layer that all others explain; some are defined by layers of their own."""
    choice = METHODS[name].layer_choice
    return choice is LayerChoice.LAST or (choice is LayerChoice.STREAM and not has_tokens)


@dataclass(frozen=True)
class Test:
    """A column of the table, or several that share work."""

    name: str
    question: str
    score: str
    run: Callable[[Plan], Mapping[str, Found]]
    """Columns by name."""
    has_networks: bool = False
    """Whether its networks are trained or drawn, so that it has to be run again with others."""
    group: str = ""
    """Tests of one group explain the same networks and run one after the other in one process."""

"""Every method and every baseline on one subject, and what is measured of their maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
_SLOW_SHARE = 3
_RESAMPLES = 2000


@dataclass(frozen=True)
class Plan:
    """What is run: which methods, how many images of each test, how long small networks are trained."""

    methods: Sequence[str] = tuple(METHODS)
    scale: float = 1.0
    seed: int = 0

    def count(self, images: int) -> int:
        """So many images, or fewer in a quick run."""
        return max(2, round(self.scale * images))


@dataclass(frozen=True)
class Subject:
    """A model, a layer and images; `masks` say where the truth is: `(n, *t)`, or `(n, m, *t)` for `(n, m)` targets."""

    model: nn.Module
    layer: str
    images: Tensor
    targets: Tensor
    masks: Tensor
    is_costly: bool = False
    """Whether slow methods see only a part of the images."""
    has_tokens: bool = False
    """Whether methods that choose layers of tokens do so, in place of `layer`."""


@dataclass
class Found:
    """The scores of each row of the table, one per image (NaN where there is none), and why others have none."""

    scores: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def merge(self, other: Found) -> None:
        """Add the images of another subject of the same test."""
        for row, values in other.scores.items():
            self.scores[row] = torch.cat([self.scores[row], values]) if row in self.scores else values
        self.skipped |= other.skipped


Measure = Callable[[Tensor, Tensor], Tensor]
"""From heatmaps and masks, both `(r, *t)`, to a score for each, NaN where there is none."""


def share(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of the map that lies where the truth is; NaN for an empty map. A constant map has the chance level."""
    return mass_accuracy(heatmaps, masks).values


def score_all(subject: Subject, plan: Plan, measure: Measure = share) -> Found:
    """Measure the maps of all methods that apply, and of the baselines."""
    found = Found()
    for row, heatmaps in explain_all(subject, plan, found.skipped):
        masks = subject.masks[: len(heatmaps)]
        leading = masks.shape[: masks.ndim - (subject.images.ndim - 2)]
        found.scores[row] = measure(*(maps.reshape(-1, *maps.shape[len(leading) :]) for maps in (heatmaps, masks)))
    return found


def explain_all(subject: Subject, plan: Plan, skipped: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The heatmaps of each method that applies and of each baseline; `skipped` gets the reasons of the others."""
    for name in plan.methods:
        some = -(-len(subject.images) // _SLOW_SHARE) if name in SLOW and subject.is_costly else len(subject.images)
        try:
            yield name, explain(name, subject, some)
        except GradCamKitError as error:
            skipped[name] = str(error).partition(";")[0]
    for name, baseline in BASELINES.items():
        heatmaps = baseline(subject.images, plan.seed, torch.arange(len(subject.images)))
        if subject.targets.ndim == 2:
            heatmaps = heatmaps[:, None].expand(-1, subject.targets.shape[1], *heatmaps.shape[1:])
        yield name, heatmaps


def explain(name: str, subject: Subject, some: int) -> Tensor:
    """Heatmaps as the method returns them, at the subject's layer."""
    method = METHODS[name]
    # The same layer for all, except for those that are defined by layers of their own.
    shared = method.layer_choice is LayerChoice.LAST
    shared |= method.layer_choice is LayerChoice.STREAM and not subject.has_tokens
    layer = subject.layer if shared else None
    cam = method(subject.model, layer, **OPTIONS.get(name, {}))
    return cam(subject.images[:some], subject.targets[:some])


@dataclass(frozen=True)
class Cell:
    """Mean and 95 % bootstrap interval of the images that have a score; `empty` counts the others."""

    mean: float
    low: float
    high: float
    n: int
    empty: int


def summarize(values: Tensor, seed: int) -> Cell:
    """The interval is that of 2000 resamples of the images."""
    numbers = values.double().numpy()
    good = numbers[~np.isnan(numbers)]
    empty = len(numbers) - len(good)
    if not len(good):
        return Cell(float("nan"), float("nan"), float("nan"), 0, empty)
    drawn = np.random.default_rng(seed).choice(good, (_RESAMPLES, len(good))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Cell(float(good.mean()), float(low), float(high), len(good), empty)


@dataclass(frozen=True)
class Test:
    """A column of the table."""

    name: str
    question: str
    score: str
    run: Callable[[Plan], Mapping[str, Found]]
    """Columns by name: the test's own, or several that share work."""

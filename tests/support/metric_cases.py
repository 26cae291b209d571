"""A batch that every metric can measure: a tiny model, its Grad-CAM maps with all values different, masks and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from models import images, tiny
from torch import Tensor

from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.metrics import METRICS, Metric, MetricInput, MetricResult

SIZE = (13, 14)
CLASSES = torch.tensor([1, 4, 0])
IDENTITIES = torch.tensor([11, 7, 2**40 + 3])
MAP = torch.tensor([[[0.0, 0.25], [0.5, 1.0]]])
IMAGE = torch.tensor([[[[4.0, 4.0], [4.0, 4.0]]]])
RIGHT = torch.tensor([[[False, True], [False, True]]])
CORNER = torch.tensor([[[True, False], [False, False]]])
"""Maps and images that fit on a hand."""

_SHAKEN = {"samples": 3, "radius": 0.1}
FEW = {
    "deletion": {"steps": 9},
    "insertion": {"steps": 9},
    "srg": {"steps": 9},
    "local-lipschitz": _SHAKEN,
    "relative-input-stability": _SHAKEN,
    "relative-output-stability": _SHAKEN,
    "relative-representation-stability": _SHAKEN,
    "infidelity": {"samples": 6, "patch": 4},
    "region-perturbation": {"patch": 4, "steps": 9},
    "irof": {"segments": 9, "compactness": 1000.0},
    "sensitivity-n": {"samples": 7, "fractions": (0.1, 0.5)},
    "faithfulness-correlation": {"samples": 7},
    "monotonicity-correlation": {"steps": 6, "samples": 2},
}
"""Options that make a metric fast."""


def measure(metric: Metric, case: MetricInput, **options: object) -> MetricResult:
    return metric(case, **{**FEW.get(metric.name, {}), **options})


@contextmanager
def standard_case(
    n: int = 3, *, batch_size: int = 64, pick: Tensor | None = None, named: bool = True
) -> Iterator[MetricInput]:
    """The batch, or the samples `pick` of it; `named` says whether the images have identities of their own."""
    chosen = torch.arange(n) if pick is None else pick
    x, classes = images(size=SIZE)[chosen], CLASSES[chosen]
    model = tiny()
    cam = GradCAM(model, "relu1")
    with rescoring(model, x, classes, batch_size=batch_size) as rescore:
        yield MetricInput(
            heatmaps=cam(x, classes),
            images=x,
            rescore=rescore,
            masks=masks()[chosen],
            explain=lambda changed: cam(changed, classes),
            represent=partial(represent, model),
            seed=5,
            identities=IDENTITIES[chosen] if named else None,
        )


@torch.no_grad()
def represent(model: Any, rows: Tensor) -> Tensor:
    """The activations of the layer that `standard_case` explains."""
    return model.relu1(model.stage1(rows))


def masks() -> Tensor:
    found = torch.zeros(3, *SIZE, dtype=torch.bool)
    found[0, 0:6, 5:13] = True
    found[1, 0:4, 8:] = True
    found[2, 5:, :5] = True
    return found


def with_maps(case: MetricInput, heatmaps: Tensor) -> MetricInput:
    return replace(case, heatmaps=heatmaps)


def names_that_need(field: str) -> list[str]:
    return [name for name, metric in METRICS.items() if field in metric.needs]


def value(found: MetricResult) -> float:
    """The number of the first image, to compare with `==`."""
    assert found.ok.all()
    return pytest.approx(float(found.values[0]), abs=1e-6)

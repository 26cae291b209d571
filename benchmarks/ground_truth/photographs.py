"""Photographs with objects framed by hand, and a network with ImageNet weights: a common-sense check, not ground truth.

The photographs come with scikit-image, the weights with the package that `gradcam_kit.models.photos` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from skimage import data
from torch import Tensor

from benchmarks.ground_truth.scoring import THIRD, Found, Plan, Subject, Test, score_all, share
from gradcam_kit.metrics import pointing_game
from gradcam_kit.models import LoadedModel, load_model

Box = tuple[int, int, int, int]
_SIDE = 224


@dataclass(frozen=True)
class Photograph:
    """A picture with an object.

    Attributes:
        read: function that returns the picture, `(h, w, 3)` or gray `(h, w)`.
        names: acceptable predictions of MobileNetV2; empty if it does not name the object in the box.
        box: bounding box of the object, drawn by hand, `(x0, y0, x1, y1)` in the picture's pixels.
        explained: the explained class; "" = the predicted class.
    """

    read: Callable[[], np.ndarray]
    names: frozenset[str]
    box: Box
    explained: str = ""


PHOTOGRAPHS: dict[str, Photograph] = {
    "chelsea": Photograph(data.chelsea, frozenset({"Egyptian cat", "tabby", "tiger cat"}), (40, 10, 320, 290)),
    "coffee": Photograph(data.coffee, frozenset({"espresso", "cup", "coffee mug"}), (150, 20, 420, 285)),
    "camera": Photograph(data.camera, frozenset({"tripod", "reflex camera"}), (220, 120, 430, 460)),
    "motorcycle": Photograph(
        lambda: data.stereo_motorcycle()[0], frozenset({"moped", "motor scooter", "disk brake"}), (60, 60, 700, 430)
    ),
    "astronaut": Photograph(data.astronaut, frozenset(), (60, 0, 450, 512)),
    "rocket": Photograph(
        data.rocket, frozenset({"space shuttle", "missile", "drilling platform", "obelisk"}), (280, 120, 370, 400)
    ),
}
SHUTTLE = Photograph(data.astronaut, frozenset(), (350, 10, 490, 300), "space shuttle")
"""The space shuttle behind the astronaut."""

# Smaller budgets: most of these methods need passes for each of the 1280 channels, and SESS for each window.
_FEWER: dict[str, dict[str, Any]] = {
    "score-cam": {"channels": 64},
    "ss-cam": {"channels": 16},
    "is-cam": {"channels": 16},
    "sess": {"scales": 2},
    "ablation-cam": {"channels": 64},
}

MEASURED = (*(PHOTOGRAPHS[name] for name in ("chelsea", "coffee", "camera", "motorcycle", "rocket")), SHUTTLE)
"""Photographs whose explained class is the object in the box.

The shuttle replaces the astronaut, for whom the network names the suit or the flag.
"""


@cache
def network() -> LoadedModel:
    """Return MobileNetV2 with its weights.

    Raises:
        MissingExtraError: the weights are not installed.
    """
    return load_model("mobilenet-v2")


def pixels(photograph: Photograph) -> np.ndarray:
    """Return the picture with three channels."""
    picture = photograph.read()
    return np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture


def image(photograph: Photograph) -> Tensor:
    """Return the picture as input of the network."""
    return network().transform(pixels(photograph))


def mask(photograph: Photograph) -> Tensor:
    """Return the mask of the object in the network's input."""
    left, top, right, bottom = network().transform.box(*pixels(photograph).shape[:2])
    x0, y0, x1, y1 = photograph.box
    centers = (torch.arange(_SIDE) + 0.5) / _SIDE
    xs, ys = left + centers * (right - left), top + centers * (bottom - top)
    return ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))


def index_of(name: str) -> int:
    """Return the index of an ImageNet class."""
    names = network().class_names
    assert names is not None
    return names.index(name)


def photographs(plan: Plan) -> dict[str, Found]:
    """Score the share of the map in the box and whether its peak is there, for the predicted class or the shuttle."""
    shown = MEASURED[: plan.count(len(MEASURED))]
    images, masks = torch.stack([image(one) for one in shown]), torch.stack([mask(one) for one in shown])
    model = network().model
    with torch.inference_mode():
        best = model(images).argmax(1)
    targets = torch.tensor(
        [index_of(one.explained) if one.explained else int(top) for one, top in zip(shown, best, strict=True)]
    )

    def both(heatmaps: Tensor, where: Tensor) -> Tensor:
        hits = pointing_game(heatmaps, where)
        return torch.stack([share(heatmaps, where), hits.values.where(hits.ok, torch.nan)], 1).flatten()

    subject = Subject(model, "features.18", images, targets, masks, parts=THIRD, options=_FEWER)
    found = score_all(subject, plan, both)
    columns = {}
    for place, name in enumerate(("photographs, share", "photographs, peak")):
        scores = {row: values.unflatten(0, (-1, 2))[:, place] for row, values in found.scores.items()}
        columns[name] = Found(scores, found.skipped)
    del columns["photographs, peak"].scores["ones"]  # a constant map has no peak
    return columns


TESTS = (
    Test(
        "photographs",
        "MobileNetV2 with ImageNet weights on six photographs whose objects are framed by hand",
        "share of the map in the frame, and whether its maximum is there",
        photographs,
    ),
)

"""Tests on networks whose wiring determines the truth, so that it is known without training or assumptions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import get_args

import torch
from torch import Tensor

from benchmarks.ground_truth.networks import SCALE, Gate, Gated, Wired, half_blind
from benchmarks.ground_truth.scoring import Found, Plan, Subject, Test, score_all, share

SIDE, SQUARE = 32, 6
RED, GREEN, BLUE = range(3)
_IMAGES = 4
# a position of the last maps sees 2 pixels beyond its own 2, linear upsampling spreads it by 1, and the rest is slack
MARGIN = 5


def squares(n: int, colors: tuple[int, ...], seed: int, low: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return images with one square per color, which do not overlap, and their masks `(colors, n, h, w)`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 3, SIDE, SIDE)
    masks = torch.zeros(len(colors), n, SIDE, SIDE, dtype=torch.bool)
    cells = SIDE // 8  # each square lies in a different cell of 8 x 8 pixels
    for i in range(n):
        places = torch.randperm(cells**2, generator=generator)[: len(colors)].tolist()
        for part, (color, place) in enumerate(zip(colors, places, strict=True)):
            shift = torch.randint(8 - SQUARE + 1, (2,), generator=generator).tolist()
            top, left = 8 * (place // cells) + shift[0], 8 * (place % cells) + shift[1]
            strength = low + (1 - low) * float(torch.rand((), generator=generator))
            images[i, color, top : top + SQUARE, left : left + SQUARE] = strength
            masks[part, i, top : top + SQUARE, left : left + SQUARE] = True
    return images, masks


def signs(plan: Plan) -> dict[str, Found]:
    """Score maps of images with evidence for the class (red), against it (green), and without effect (blue)."""
    images, masks = squares(plan.count(24), (RED, GREEN, BLUE), plan.seed)
    targets = torch.zeros(len(images)).long()
    # A square of full strength contributes `SCALE` to the logit.
    model = Wired(SCALE * SIDE**2 / SQUARE**2).eval()
    return {"signs": score_all(Subject(model, "relu", images, targets, masks[0]), plan)}


def gates(plan: Plan) -> dict[str, Found]:
    """Score maps of images with two squares, both of which are needed ("and") or one of which is enough ("or")."""
    found = {}
    for gate in get_args(Gate):
        images, masks = squares(plan.count(24), (RED, GREEN, BLUE), plan.seed + 1, low=0.8)

        def balance(heatmaps: Tensor, where: Tensor, masks: Tensor = masks) -> Tensor:
            first, second = (share(heatmaps, mask[: len(heatmaps)]) for mask in masks[:2])
            return 2 * torch.minimum(first, second)

        model = Gated(gate, SQUARE**2).eval()
        subject = Subject(model, "relu", images, torch.zeros(len(images)).long(), masks[0] | masks[1])
        with expecting_empty_maps() if gate == "or" else nullcontext():
            found[gate] = score_all(subject, plan, balance)
    return found


@contextmanager
def expecting_empty_maps() -> Iterator[None]:
    """Suppress the warnings about empty maps.

    A saturated gate has no gradient, so most maps are empty; this is what the test is about, and the table reports it.
    In other tests, a warning about an empty map matters.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return "no positive evidence" not in record.getMessage()

    log = logging.getLogger("gradcam_kit")
    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)


def blind(plan: Plan) -> dict[str, Found]:
    """Score the maps of a half-blind network with random weights, on noise."""
    generator = torch.Generator().manual_seed(plan.seed)
    images = torch.randn(_IMAGES, 3, SIDE, SIDE, generator=generator)
    seen = torch.zeros(_IMAGES, SIDE, SIDE, dtype=torch.bool)
    seen[:, : SIDE // 2 + MARGIN] = True
    model = half_blind(plan.seed)
    with torch.inference_mode():
        targets = model(images).argmax(1)
    return {"blind half": score_all(Subject(model, "body.3", images, targets, seen), plan)}


TESTS = (
    Test(
        "signs",
        "Hand-wired: evidence for the class, against it, and evidence that the head ignores",
        "share of the map on the square that counts for the class",
        signs,
    ),
    Test(
        "gates",
        "Hand-wired: two squares needed together (and), or one of two enough (or: saturated where both are present)",
        "twice the smaller of the two squares' shares of the map",
        gates,
    ),
    Test(
        "blind half",
        "Random weights and a head that sees only the upper half",
        "share of the map in the half that can matter",
        blind,
        has_networks=True,
    ),
)

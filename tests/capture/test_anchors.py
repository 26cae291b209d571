"""Anchors of several levels lie on no grid, whatever their number and wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import build, images
from torch import Tensor, nn

from gradcam_kit import METHODS, GradCAM
from gradcam_kit.errors import ShapeError


def square(m: Any, x: Tensor) -> Tensor:
    """4 x 4 and 3 x 3 positions: 25 anchors, which would be 5 x 5."""
    fine = m.fine(x)
    return torch.cat([fine.flatten(2).mT, m.coarse(fine).flatten(2).mT], 1)


def single_shot(m: Any, x: Tensor) -> Tensor:
    """Two anchors at each position of 4 x 4, and two at each of 3 x 3."""
    fine = m.fine(x)
    levels = [level.flatten(2).mT.unflatten(2, (2, 4)).flatten(1, 2) for level in (fine, m.coarse(fine))]
    return torch.cat(levels, 1)


def channels_first(m: Any, x: Tensor) -> Tensor:
    """Boxes and classes on the second axis, the anchors of three levels (16 + 9 + 1) on the last."""
    fine = m.fine(x)
    coarse = m.coarse(fine)
    return torch.cat([level.flatten(2) for level in (fine, coarse, coarse.mean((2, 3), keepdim=True))], 2)


def same_place(m: Any, x: Tensor) -> Tensor:
    """Several anchors at each position of one level: as many boxes as 8 x 8 positions."""
    return m.fine(x).flatten(2).mT[:, :, None].expand(-1, -1, 4, -1).flatten(1, 2)


HEADS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "25 in two levels": (square, 8),
    "two at each position": (single_shot, 4),
    "channels first, three levels": (channels_first, 8),
    "four at each position": (same_place, 8),
}


def detector(name: str) -> nn.Module:
    head, width = HEADS[name]
    first = head is channels_first
    return build(
        lambda m, x: m.fc(m.boxes(head(m, x)).amax(2 if first else 1)),
        fine=nn.Conv2d(3, 8, 4, 4),
        coarse=nn.Conv2d(8, 8, 2),
        boxes=nn.Identity() if first else nn.LayerNorm(width),
        fc=nn.Linear(width, 3),
    )


@pytest.mark.parametrize("name", HEADS)
def test_they_are_refused_by_name_and_never_chosen(name: str) -> None:
    model = detector(name)
    for method in ("grad-cam", "eigen-cam"):
        found = METHODS[method](model).explain(images(2), 1)
        assert found.layers[0] in ("fine", "coarse")
    with pytest.raises(ShapeError, match="layer 'boxes' returned shape"):
        GradCAM(model, "boxes")(images(2), 1)

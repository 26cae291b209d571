"""Rows that go through the model are told to who listens, and to nobody else."""

from __future__ import annotations

import pytest
import torch

from gradcam_kit import METHODS
from gradcam_kit.capture import counting_rows
from gradcam_kit.demo import collate, draw, load_demo_model


@pytest.mark.parametrize(("name", "layer", "options", "rows"), [
    ("score-cam", "layer4", {"channels": 6, "batch_size": 4}, 12),
    ("rise", "layer4", {"masks": 10, "batch_size": 4}, 20),
    ("recipro-cam", "layer3", {}, 2 * 8 * 8),
    ("grad-cam", "layer4", {}, 0),
])  # fmt: skip
def test_every_row_is_counted_once(name: str, layer: str, options: dict[str, object], rows: int) -> None:
    model, images = load_demo_model(), collate([draw(0), draw(1)]).images[..., ::2, ::2]
    counts: list[int] = []
    cam = METHODS[name](model, layer, **options)
    expected = cam(images, 1)
    with counting_rows(counts.append):
        heatmaps = cam(images, 1)
    assert torch.equal(heatmaps, expected)
    assert sum(counts) == rows
    cam(images, 1)
    assert sum(counts) == rows


def test_what_the_listener_raises_ends_the_method() -> None:
    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), counting_rows(stop):
        METHODS["score-cam"](load_demo_model(), "layer4", channels=4)(collate([draw(0)]).images)

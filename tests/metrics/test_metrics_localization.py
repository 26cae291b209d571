"""Numbers of the metrics against masks that a reader can check by hand, and the edges of each definition."""

from __future__ import annotations

from inspect import unwrap

import pytest
import torch
from metric_cases import CORNER, MAP, RIGHT, value

from gradcam_kit.errors import InputError, OptionError, ShapeError
from gradcam_kit.metrics import (
    Status,
    average_precision,
    bounding_boxes,
    box_accuracy,
    box_masks,
    grid_pointing,
    iou,
    mass_accuracy,
    max_box_accuracy,
    pixel_average_precision,
    pixel_histograms,
    pointing_game,
    rank_accuracy,
    top_k_intersection,
    weighted_ioa,
)


def test_pointing_game() -> None:
    assert value(pointing_game(MAP, RIGHT)) == 1
    assert value(pointing_game(MAP, CORNER)) == 0
    # The maximum is sqrt(2) away from the corner, and nearer than the tolerance counts.
    assert value(pointing_game(MAP, CORNER, tolerance=1.41)) == 0
    assert value(pointing_game(MAP, CORNER, tolerance=1.42)) == 1
    far = torch.zeros(1, 1, 40)
    far[0, 0, 15] = 1
    mask = torch.zeros(1, 1, 40, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert value(pointing_game(far, mask, tolerance=15.0)) == 0  # 15^2 < 15^2 does not hold
    assert value(pointing_game(far, mask, tolerance=15.1)) == 1
    both = pointing_game(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), CORNER)
    assert value(both) == 1  # the first of two maxima
    assert both.details["ties"].tolist() == [1]


def test_mass_and_ranks() -> None:
    assert value(mass_accuracy(MAP, RIGHT)) == 1.25 / 1.75
    assert value(mass_accuracy(MAP - 0.5, RIGHT)) == 1  # what is negative does not count
    assert value(rank_accuracy(MAP, RIGHT)) == 0.5
    assert value(rank_accuracy(MAP, ~CORNER)) == 1
    assert value(top_k_intersection(MAP, RIGHT, k=1)) == 1
    assert value(top_k_intersection(MAP, RIGHT, k=3)) == 2 / 3
    assert value(top_k_intersection(MAP, ~CORNER, k=4)) == 0.75  # a mask smaller than k caps it
    tied = torch.tensor([[[0.5, 0.5], [0.5, 1.0]]])
    found = rank_accuracy(tied, RIGHT)
    assert value(found) == 0.5  # the first of the equal ones is off the object
    assert found.details["ties"].tolist() == [1]


def test_thresholds() -> None:
    assert value(iou(MAP, RIGHT, threshold=0.5)) == 1 / 3
    assert value(iou(MAP, RIGHT, threshold=0.25)) == 2 / 3
    assert value(weighted_ioa(MAP, RIGHT, threshold=0.5)) == 1 / 1.5
    two_levels = torch.tensor([[[0.1, 0.8], [0.2, 0.9]]])
    assert value(iou(two_levels, RIGHT, threshold="otsu")) == 1
    for wrong in (0.0, 1.1):
        with pytest.raises(OptionError, match="share of the maximum"):
            iou(MAP, RIGHT, threshold=wrong)


def test_a_map_of_zeros_has_no_mass() -> None:
    assert value(mass_accuracy(MAP * 1e-12, RIGHT)) == 1.25 / 1.75  # and a faint one has
    found = mass_accuracy(torch.zeros_like(MAP), RIGHT)
    assert found.values.isnan().all()
    assert found.status.tolist() == [Status.DEGENERATE_MAP]


def test_grid_pointing() -> None:
    mosaic = torch.zeros(1, 4, 6)
    mosaic[0, 0, 0], mosaic[0, 3, 5], mosaic[0, 2, 1] = 1.0, 3.0, -2.0
    assert value(grid_pointing(mosaic, torch.tensor([0]))) == 0.25
    assert grid_pointing(mosaic * 1e-8, torch.tensor([0])).status.tolist() == [Status.DEGENERATE_MAP]
    assert value(grid_pointing(mosaic, torch.tensor([3]))) == 0.75
    assert value(grid_pointing(mosaic, torch.tensor([5]), (2, 3))) == 0.75
    assert grid_pointing(mosaic, torch.tensor([0])).details["chance"].tolist() == [0.25]
    with pytest.raises(ShapeError, match="does not divide"):
        grid_pointing(mosaic, torch.tensor([0]), (3, 2))


def test_boxes() -> None:
    masks = box_masks(torch.tensor([[[1.0, 0.0, 3.0, 2.0], [4.0, 3.0, 5.0, 4.0]]]), (4, 6))
    assert masks.sum() == 5
    assert masks[0, :2, 1:3].all()
    assert masks[0, 3, 4]
    assert bounding_boxes(masks).tolist() == [[1, 0, 5, 4]]
    assert bounding_boxes(torch.zeros(1, 4, 6, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]
    heatmap = torch.zeros(1, 6, 6)
    heatmap[0, 1:4, 1:4], heatmap[0, 1, 1], heatmap[0, 5, 5] = 0.5, 1.0, 0.9
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 1:4, 1:6] = True
    found = box_accuracy(heatmap, mask, threshold=0.2, overlap=0.6)
    assert value(found) == 1
    assert found.details["iou"].tolist() == pytest.approx([9 / 15])
    assert value(box_accuracy(heatmap, mask, threshold=0.2, overlap=0.61)) == 0
    assert value(box_accuracy(heatmap, mask, threshold=0.6)) == 0  # only single positions are left
    best, accuracies = max_box_accuracy(torch.tensor([[0.6, 0.2], [0.4, 0.9], [0.1, 0.7]]))
    assert float(best) == pytest.approx(2 / 3)
    assert accuracies.tolist() == pytest.approx([1 / 3, 2 / 3])


def test_pixel_average_precision() -> None:
    # Descending: hit, miss, hit, miss: precision 1 and 2/3 where recall rises by a half.
    assert value(pixel_average_precision(MAP, RIGHT)) == 0.5 * 1 + 0.5 * 2 / 3
    both = torch.cat([MAP, MAP]), torch.cat([RIGHT, CORNER])
    total = average_precision(pixel_histograms(*both).sum(0))
    # At 1: 1 of 2 pixels; at 0.5: 1 of 4; at 0.25: 2 of 6; at 0: 3 of 8.
    assert float(total) == pytest.approx((1 / 2 + 2 / 6 + 3 / 8) / 3)
    without = pixel_histograms(*both, torch.cat([RIGHT, RIGHT]))
    assert without.sum(2).tolist() == [[0, 2], [1, 1]]


@pytest.mark.parametrize(
    ("boxes", "error", "said"),
    [
        ([[1, 2, 3, 4]], InputError, "boxes is a list; expected a tensor"),
        (torch.zeros(2, 4), ShapeError, r"boxes have shape \(2, 4\); expected \(n, b, 4\).*boxes\[:, None\]"),
        (torch.zeros(2, 1, 5), ShapeError, r"boxes have shape \(2, 1, 5\)"),
    ],
)
def test_boxes_of_another_form(boxes, error, said):
    with pytest.raises(error, match=said):
        unwrap(box_masks)(boxes, (5, 5))  # unwrapped: as it is outside of the tests

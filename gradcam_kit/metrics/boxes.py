"""Box accuracy: Choe et al., CVPR 2020, https://arxiv.org/abs/2001.07437."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, ShapeError
from gradcam_kit.functional import move
from gradcam_kit.metrics.checks import check_boxes, check_masks, usable
from gradcam_kit.metrics.localization import empty, localization_flags
from gradcam_kit.metrics.ordering import unordered
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.options import finite_number

THRESHOLDS = tuple(i / 100 for i in range(100))
_PAPER = "Box accuracy: Choe et al., CVPR 2020, https://arxiv.org/abs/2001.07437."


@metric("box-accuracy", better="higher", paper=_PAPER)
def box_accuracy(
    heatmaps: Float[Tensor, "n h w"],
    masks: Bool[Tensor, "n h w"],
    *,
    threshold: float = 0.2,
    overlap: float = 0.5,
) -> MetricResult:
    """Score 1 if the box around the map's largest contour overlaps the mask's box by at least `overlap`, else 0.

    The threshold is fixed. The paper takes the best threshold for the data set; see `max_box_accuracy`, or
    `MaxBoxAccuracy` in `gradcam_kit.metrics.accumulation`. `details["iou"]` is the overlap.

    Args:
        heatmaps: maps with two position axes.
        masks: masks of the objects, whose bounding boxes are used.
        threshold: regions consist of positions above this share of the map's maximum.
        overlap: smallest intersection over union of the boxes that is a hit.
    """
    check_masks(masks, heatmaps)
    check_overlap(overlap)
    found = box_overlaps(heatmaps, bounding_boxes(masks)[:, None], [threshold])[:, 0]
    undefined = unordered(heatmaps) | empty(masks)
    values = (found >= overlap).float().masked_fill(undefined, torch.nan)
    settings = {"threshold": threshold, "overlap": overlap, "regions": "largest contour"}
    return measured(values, localization_flags(heatmaps, masks), settings, {"iou": found})


def max_box_accuracy(
    overlaps: Float[Tensor, "n thresholds"], overlap: float = 0.5
) -> tuple[Float[Tensor, ""], Float[Tensor, " thresholds"]]:
    """Return the accuracy of the data set at its best threshold, and at every threshold.

    The threshold is chosen on the evaluated images themselves; for a fair number, choose the threshold on other images.
    """
    accuracies = (overlaps >= check_overlap(overlap)).double().mean(0)
    return accuracies.amax(), accuracies


def check_overlap(overlap: float) -> float:
    """Return `overlap` if it is in (0, 1]; raise OptionError otherwise."""
    if not 0 < finite_number("overlap", overlap) <= 1:
        raise OptionError(f"overlap is {overlap}; expected an intersection over union in (0, 1]")
    return overlap


def box_overlaps(
    heatmaps: Float[Tensor, "n h w"],
    boxes: Float[Tensor, "n b 4"],
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    all_regions: bool = False,
) -> Float[Tensor, "n thresholds"]:
    """Return the best intersection over union between an image's boxes and the boxes around its map's regions.

    Regions are found with OpenCV on the host: connected positions above the threshold, diagonals included.

    Args:
        heatmaps: maps with two position axes.
        boxes: (x0, y0, x1, y1), x1 and y1 exclusive; boxes without area are padding.
        thresholds: shares of each map's maximum, exclusive.
        all_regions: False = only the region whose contour, through its outer positions, encloses the largest area
            (MaxBoxAcc); True = all regions (MaxBoxAccV2).

    Raises:
        ShapeError: maps without exactly two position axes, or boxes that are not `(n, b, 4)`.
        OptionError: thresholds outside [0, 1).
        InputError: boxes that contain NaN.
    """
    check_boxes(boxes)
    if heatmaps.ndim != 3 or len(boxes) != len(heatmaps):
        raise ShapeError(
            f"heatmaps have shape {tuple(heatmaps.shape)} and boxes {tuple(boxes.shape)}; expected (n, h, w), (n, b, 4)"
        )
    if not thresholds or min(thresholds) < 0 or max(thresholds) >= 1:
        raise OptionError(f"thresholds are {tuple(thresholds)}; expected at least one, each in [0, 1)")
    from torchvision.ops import box_iou  # not at the top, where it would make importing the package slow

    maps = usable(heatmaps).cpu().numpy()
    truth = boxes.double().cpu().numpy()
    if np.isnan(truth).any():
        raise InputError("boxes contain NaN; expected x0, y0, x1, y1 in positions, or zeros for padding")
    found = np.zeros((len(maps), len(thresholds)))
    for image, (one, own) in enumerate(zip(maps, truth, strict=True)):
        for place, threshold in enumerate(thresholds):
            regions = _region_boxes(one > threshold * one.max(initial=0.0), all_regions)
            overlaps = box_iou(torch.from_numpy(regions), torch.from_numpy(own))  # NaN between boxes without area
            found[image, place] = overlaps.nan_to_num().numpy().max(initial=0.0)
    return move(torch.from_numpy(found), heatmaps.device, torch.float32)


def bounding_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Return the box (x0, y0, x1, y1) around each mask, x1 and y1 exclusive, or zeros for an empty mask.

    Raises:
        ShapeError: masks without exactly two position axes.
    """
    if masks.ndim != 3:
        raise ShapeError(f"boxes need masks (n, h, w); got {tuple(masks.shape)}")
    corners = []
    for axis in (1, 2):  # the columns that the mask covers, then the rows
        line = masks.any(axis).to(torch.uint8)
        length = line.shape[1]
        corners.append((line.argmax(1), length - line.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = corners
    return (torch.stack([x0, y0, x1, y1], 1) * ~empty(masks)[:, None]).float()


def _region_boxes(above: NDArray[np.bool_], all_regions: bool) -> NDArray[np.float64]:
    """Return the boxes around connected regions, `(r, 4)`."""
    from gradcam_kit.pixels.opencv import cv2

    # With two levels, outer contours (even of regions inside holes) have no parent, and contours of holes have one.
    contours, levels = cv2.findContours(above.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = () if levels is None else levels[0][:, 3]
    outer = [contour for contour, parent in zip(contours, parents, strict=True) if parent < 0]
    if outer and not all_regions:
        outer = [max(outer, key=cv2.contourArea)]
    boxes = np.array([cv2.boundingRect(contour) for contour in outer], dtype=float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

"""Metrics over a data set, also from several processes, as subclasses of torchmetrics' `Metric`.

Call `update` for each batch, then `compute`. The module needs the extra `metrics`: pip install -e ".[metrics]" in the
checkout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from gradcam_kit.errors import InputError, kind_of, missing_extra
from gradcam_kit.functional import move
from gradcam_kit.metrics.boxes import THRESHOLDS, bounding_boxes, box_overlaps, check_overlap, max_box_accuracy
from gradcam_kit.metrics.checks import check_masks, degenerate, read_whole_numbers
from gradcam_kit.metrics.localization import pointing_game
from gradcam_kit.metrics.pixels import average_precision, pixel_histograms
from gradcam_kit.metrics.registry import METRICS, Metric, MetricInput
from gradcam_kit.metrics.result import MetricResult, Status, measured
from gradcam_kit.options import non_negative, positive_int

try:
    import torchmetrics
except ImportError as error:
    raise missing_extra("metrics over data sets need torchmetrics", "metrics") from error


def _counts(status: Int[Tensor, " n"]) -> Int[Tensor, " statuses"]:
    """Return the number of images by status."""
    return torch.stack([(status == int(one)).sum() for one in Status])


def _told(counts: Int[Tensor, " statuses"]) -> dict[str, Tensor]:
    """Return the number of images in a mean, and the number of images left out for each reason."""
    flagged = {status.name.lower(): counts[int(status)] for status in Status if status is not Status.OK}
    return {"count": counts[int(Status.OK)], **flagged}


class MeanOverImages(torchmetrics.Metric):
    """The mean of any metric over the images with status OK, and the number of images by status.

    `compute` returns a dict: "mean", "count" (images in the mean), and the number of images per status that is not OK.
    `higher_is_better` and `settings` show how to interpret the mean.

    Args:
        name: key of `METRICS`, or a metric such as `Metric("grid-pointing", grid_pointing, "higher")`, made from a
            function that returns one number per image. Pass the results of such a function to `update`.
        options: options of the metric's function; pass those of torchmetrics as `torchmetrics_options`.
        torchmetrics_options: options of torchmetrics, such as `sync_on_compute` or `dist_sync_fn`.

    Raises:
        UnknownNameError: a name that is not in `METRICS`.
        OptionError: an option that the metric's function does not have.
    """

    full_state_update = False
    total: Tensor
    counts: Tensor

    def __init__(
        self, name: str | Metric, *, torchmetrics_options: dict[str, Any] | None = None, **options: Any
    ) -> None:
        metric = METRICS[name] if isinstance(name, str) else name
        metric.check_options(options)
        super().__init__(**(torchmetrics_options or {}))
        self.metric, self.options = metric, options
        # torchmetrics treats this attribute as a constant of the class and refuses a plain assignment.
        vars(self)["higher_is_better"] = {"higher": True, "lower": False}.get(self.metric.better)
        self.settings: dict[str, Any] = {}
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(Status), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, case: MetricInput | MetricResult, *others: object) -> None:
        """Add a batch: a case to measure, or a result of the metric.

        Raises:
            InputError: tensors instead of a case, or a batch measured with other settings.
        """
        if others or not isinstance(case, MetricInput | MetricResult):
            fields = ", ".join(["heatmaps", "images", *(f"{field}={field}" for field in self.metric.needs)])
            raise InputError(
                f"update got {', '.join(map(kind_of, (case, *others)))}; expected one case, with all inputs "
                f"of the metric {self.metric.name!r}: update(MetricInput({fields}))"
            )
        found = case if isinstance(case, MetricResult) else self.metric(case, **self.options)
        if self.settings and dict(found.settings) != self.settings:
            different = sorted(key for key, value in found.settings.items() if self.settings.get(key) != value)
            raise InputError(
                f"batches were measured with different settings ({', '.join(different)}); a mean over them "
                "is meaningless; use one metric object per setting"
            )
        self.settings = dict(found.settings)
        self.total += found.values.double().where(found.ok, 0).sum()
        self.counts += _counts(found.status)

    def extra_repr(self) -> str:
        """Return the metric and its options for the `repr`."""
        return ", ".join([repr(self.metric.name), *(f"{name}={value!r}" for name, value in self.options.items())])

    def reset(self) -> None:
        """Forget all batches and their settings."""
        super().reset()
        self.settings = {}

    def compute(self) -> dict[str, Tensor]:
        """Return the mean over the images with status OK, and the number of images by status."""
        return {"mean": (self.total / self.counts[int(Status.OK)]).float(), **_told(self.counts)}


class PointingGame(torchmetrics.Metric):
    """The pointing game as in its paper: hits / (hits + misses) for each class, then the mean of the classes.

    `compute` returns "mean", "classes" (number of classes in the mean), "per_class" (NaN for classes that are not in
    the data), "count" (images in the mean), and the number of images per status that is not OK. `settings` lists what
    the numbers depend on.

    Args:
        classes: number of classes.
        tolerance: distance in positions, see `pointing_game`.
        options: options of torchmetrics.
    """

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    seen: Tensor
    counts: Tensor

    def __init__(self, classes: int, *, tolerance: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.settings = {"tolerance": non_negative("tolerance", tolerance)}
        shape = positive_int("classes", classes)
        self.add_state("hits", torch.zeros(shape, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(shape, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(Status), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        heatmaps: Float[Tensor, "n *t"],
        masks: Bool[Tensor, "n *t"],
        classes: Integer[Tensor, " n"] | Integer[np.ndarray, " n"] | Sequence[int],
    ) -> None:
        """Add a batch, except images whose map or mask is flagged. A batch that raises an error is not added.

        Args:
            heatmaps: maps of any scale.
            masks: boolean masks of the objects.
            classes: the class index of each image.

        Raises:
            OptionError: a class outside the range.
            InputError: classes that are not integers.
            ShapeError: not one class for each image, or masks and heatmaps of different shapes.
        """
        found = pointing_game(heatmaps, masks, **self.settings)
        indices = read_whole_numbers("classes", classes, len(heatmaps), len(self.hits))
        indices = move(indices, self.hits.device, torch.long)
        self.hits.index_add_(0, indices, found.values.double().where(found.ok, 0))
        self.seen.index_add_(0, indices, found.ok.double())
        self.counts += _counts(found.status)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean over the classes in the data, the hit rate of each class, and the numbers of images."""
        per_class = self.hits / self.seen
        seen = (self.seen > 0).sum()
        return {"mean": per_class.nanmean(), "classes": seen, "per_class": per_class, **_told(self.counts)}


class MaxBoxAccuracy(torchmetrics.Metric):
    """MaxBoxAcc: the share of images whose box is found, at the best threshold for the data set.

    `compute` returns "mean" (over `overlaps`), "threshold" (the best one for each overlap), "count" (images in the
    mean), and the number of images per status that is not OK. The threshold is chosen on the evaluated images
    themselves; to choose it on other images, use `accuracies()`.

    Args:
        overlaps: minimum intersections over union for a hit; the second version of the metric takes the mean over
            (0.3, 0.5, 0.7).
        all_regions: whether to use all regions of a map (second version) instead of only the largest one.
        thresholds: thresholds to try, as shares of each map's maximum.
        options: options of torchmetrics.
    """

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        overlaps: Sequence[float] = (0.5,),
        all_regions: bool = False,
        thresholds: Sequence[float] = THRESHOLDS,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.overlaps, self.all_regions, self.thresholds = tuple(overlaps), all_regions, tuple(thresholds)
        self.settings = {
            "overlaps": tuple(map(check_overlap, self.overlaps)),
            "regions": "all" if all_regions else "largest contour",
            "thresholds": self.thresholds,
            "threshold_chosen": "on the same images",
        }
        shape = (len(self.overlaps), len(self.thresholds))
        self.add_state("hits", torch.zeros(shape, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(Status), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        heatmaps: Float[Tensor, "n h w"],
        masks: Bool[Tensor, "n h w"] | None = None,
        *,
        boxes: Float[Tensor, "n b 4"] | None = None,
    ) -> None:
        """Add a batch, except flagged images.

        Args:
            heatmaps: maps with two position axes.
            masks: masks of the objects, if there are no boxes; the bounding box of each mask is used.
            boxes: (x0, y0, x1, y1) of the objects, x1 and y1 exclusive; a hit on any box of an image is enough, and
                boxes without area are padding. An image without a box that covers a part of it is flagged EMPTY_GT.

        Raises:
            InputError: neither masks nor boxes, or both.
        """
        if (masks is None) == (boxes is None):
            raise InputError(
                f"got {'neither masks nor' if masks is None else 'both masks and'} boxes; pass one of them"
            )
        if masks is not None:
            check_masks(masks, heatmaps)
            boxes = bounding_boxes(masks)[:, None]
        assert boxes is not None
        found = box_overlaps(heatmaps, boxes, self.thresholds, all_regions=self.all_regions)
        size = boxes.new_tensor(heatmaps.shape[:0:-1])  # width and height, as x comes first in boxes
        inside = (boxes[..., 2:] > boxes[..., :2]) & (boxes[..., 2:] > 0) & (boxes[..., :2] < size)
        no_box = ~inside.all(2).any(1)
        status = measured(found[:, 0], {Status.EMPTY_GT: no_box, **degenerate(heatmaps)}).status
        found = found[status == int(Status.OK)]
        for place, overlap in enumerate(self.overlaps):
            self.hits[place] += max_box_accuracy(found, overlap)[1].nan_to_num() * len(found)
        self.counts += _counts(status)

    def accuracies(self) -> Float[Tensor, "overlaps thresholds"]:
        """Return the accuracy at every threshold, on the images of this process."""
        return self.hits / self.counts[int(Status.OK)]

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of the best accuracies over `overlaps`, their thresholds, and the numbers of images."""
        best = self.accuracies().max(1)
        chosen = move(torch.tensor(self.thresholds), best.indices.device)[best.indices]
        return {"mean": best.values.mean(), "threshold": chosen, **_told(self.counts)}


class PixelAveragePrecision(torchmetrics.Metric):
    """PxAP: the area under the precision-recall curve of all pixels of the data set.

    `compute` returns "average_precision" in [0, 1], "count" (images whose pixels were counted), and the number of
    images per status that is not OK.

    Args:
        bins: number of bins in [0, 1].
        options: options of torchmetrics.
    """

    full_state_update = False
    higher_is_better = True
    histograms: Tensor
    counts: Tensor

    def __init__(self, *, bins: int = 1000, **options: Any) -> None:
        super().__init__(**options)
        self.settings = {"bins": positive_int("bins", bins)}
        shape = (2, bins)
        self.add_state("histograms", torch.zeros(shape, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(Status), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        heatmaps: Float[Tensor, "n *t"],
        masks: Bool[Tensor, "n *t"],
        ignored: Bool[Tensor, "n *t"] | None = None,
    ) -> None:
        """Add a batch, except constant maps, non-finite maps and `ignored` pixels."""
        found = pixel_histograms(heatmaps, masks, ignored, **self.settings)
        status = measured(heatmaps.new_zeros(len(heatmaps)), degenerate(heatmaps)).status
        self.histograms += (found * (status == int(Status.OK))[:, None, None]).sum(0)
        self.counts += _counts(status)

    def compute(self) -> dict[str, Tensor]:
        """Return the area and the number of images."""
        return {"average_precision": average_precision(self.histograms), **_told(self.counts)}

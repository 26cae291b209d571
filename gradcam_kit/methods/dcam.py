"""dCAM: Boniol et al., SIGMOD 2022, https://arxiv.org/abs/2207.12165."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradcam_kit.capture import ClassLogit, TargetLayers
from gradcam_kit.errors import OptionError, ShapeError, TargetError
from gradcam_kit.functional import move, normalize, upsample
from gradcam_kit.methods.grad_cam import GradCAM
from gradcam_kit.options import positive_int
from gradcam_kit.targets.outputs import predicted_classes


@dataclass(frozen=True, eq=False)
class DimensionMaps:
    """The result of dCAM: which dimensions of a multivariate series matter, and when.

    Attributes:
        heatmaps: `(n, D, t)` float32 in [0, 1], normalized over all dimensions and times of a series together.
        saliency: the signed maps, at the layer's resolution in time.
        targets: the explained class.
        kept: number of orders for which the model predicted this class; only these orders enter the maps.
        is_empty: True where there was no positive evidence, for example because the model predicted another class for
            every order.
    """

    heatmaps: Float[Tensor, "n D t"]
    saliency: Float[Tensor, "n D s"]
    targets: Int[Tensor, " n"]
    kept: Int[Tensor, " n"]
    is_empty: Bool[Tensor, " n"]


def cube(series: Float[Tensor, "n D t"], orders: Int[Tensor, "p D"]) -> Float[Tensor, "n p D D t"]:
    """Return the model's input for each order: row i holds dimension `order[(i + j) % D]` at position j.

    Positions are the channels of the model's input, and rows are the height of its maps.
    """
    return series[:, _rolled(orders)]


def _rolled(orders: Int[Tensor, "p D"]) -> Int[Tensor, "p D D"]:
    """Return each order with its rotations: row r is the order rotated by r."""
    turns = torch.arange(orders.shape[1], device=orders.device)
    return orders[:, (turns[:, None] + turns) % len(turns)]


def regroup(maps: Float[Tensor, "n p D s"], orders: Int[Tensor, "p D"]) -> Float[Tensor, "n D D s"]:
    """Return M(dimension, position): the sum, over the orders, of the row that has the dimension at the position."""
    positions = torch.arange(orders.shape[1], device=orders.device)
    rows = (orders.argsort(1)[:, :, None] - positions) % len(positions)
    order = torch.arange(len(orders), device=orders.device)[:, None, None]
    return maps[:, order, rows].sum(1)


def dcam(regrouped: Float[Tensor, "n D D s"]) -> Float[Tensor, "n D s"]:
    """Multiply the variance of M(dimension, position) over the positions by the mean of M over both its axes."""
    return regrouped.var(2, correction=0) * regrouped.mean((1, 2))[:, None]


class DCAM:
    """Find which dimensions of a multivariate series matter, and when, from many orders of the dimensions.

    A CAM of a series shows which times matter; dCAM also shows which dimensions (sensors or channels) matter. The model
    must accept cubes `(n, D, D, t)` as made by `cube`, and its target layer must preserve the D rows. Each order of the
    dimensions gives a CAM, computed by Grad-CAM, which equals CAM for models that end in mean pooling and a linear
    layer. A dimension matters if its position in the order changes the map. The result has an axis for the dimensions,
    so `DCAM` is not a CAM method. The cost is one forward and backward pass for each order.

    Args:
        model: a model that accepts cubes.
        target_layers: one layer, as for CAM methods; None = chosen automatically.
        permutations: number of orders of the dimensions, at least 1.
        seed: seed of the orders, which all series share.
        batch_size: maximum number of cubes in one pass, but at least one cube for each series.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gradcam_kit import DCAM
        >>> model = nn.Sequential(nn.Conv2d(4, 8, (1, 3), padding=(0, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...                       nn.Linear(8, 3))
        >>> DCAM(model, "0", permutations=10)(torch.rand(2, 4, 50), targets=1).shape  # 4 dimensions, 50 times
        torch.Size([2, 4, 50])
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        permutations: int = 100,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self._cam = GradCAM(model, target_layers, batch_size=batch_size)
        if len(self._cam.target_layers or ()) > 1:
            raise OptionError(f"got {len(self._cam.target_layers or ())} target layers; expected one, or None")
        positive_int("permutations", permutations)
        self.permutations, self.seed = permutations, seed

    def __call__(self, series: Float[Tensor, "n D t"], targets: Any = None) -> Float[Tensor, "n D t"]:
        """Return the heatmaps of the dimensions. The arguments are those of `explain`."""
        return self.explain(series, targets).heatmaps

    @torch.inference_mode(False)
    def explain(self, series: Float[Tensor, "n D t"], targets: Any = None) -> DimensionMaps:
        """Return the heatmaps, the signed maps, and the number of orders from which the maps were computed.

        Args:
            series: `(n, D, t)`, at least one series.
            targets: None = the class predicted for the dimensions in their given order; an int = this class for all
                series; or class indices `(n,)`.
        """
        if series.ndim != 3 or not len(series):
            raise ShapeError(f"the series have shape {tuple(series.shape)}; expected (n, dimensions, times) with n > 0")
        n, dimensions, times = series.shape
        generator = torch.Generator().manual_seed(self.seed)
        orders = torch.rand(self.permutations, dimensions, generator=generator).argsort(1)
        orders = move(orders, series.device)
        own = torch.arange(dimensions, device=series.device)[None]
        classes = self._cam.explain(cube(series, own).flatten(0, 1), targets).targets
        if classes is None or classes.ndim != 1:
            raise TargetError("dCAM explains one class of each series; pass None, an int, or class indices (n,)")
        total: Tensor | int = 0
        kept = torch.zeros_like(classes)
        for part in orders.split(max(1, self._cam.batch_size // n)):
            maps, predicted = self._explain(series, part, classes)
            counts = predicted == classes[:, None]
            total = total + regroup(maps * counts[..., None, None], part)
            kept = kept + counts.sum(1)
        saliency = dcam(total / kept.clamp(min=1).view(-1, 1, 1, 1))
        heatmaps = normalize(upsample(normalize(saliency.clamp(min=0)), (dimensions, times)))
        return DimensionMaps(heatmaps.to(torch.float32), saliency, classes, kept, saliency.flatten(1).amax(1) <= 0)

    def _explain(
        self, series: Tensor, orders: Int[Tensor, "p D"], classes: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n p D s"], Int[Tensor, "n p"]]:
        """Return the CAM and the prediction of each series in each order."""
        n, dimensions, _ = series.shape
        index = torch.arange(n, device=series.device).repeat_interleave(len(orders))
        found = self._cam.explain(cube(series, orders).flatten(0, 1), ClassLogit(classes).select(index))
        ((layer, maps),) = found.saliency.items()
        if maps.ndim != 3 or maps.shape[1] != dimensions:
            raise ShapeError(
                f"layer {layer!r} has maps {tuple(maps.shape[1:])} for {dimensions} dimensions; expected one row for "
                "each dimension; use kernels and strides of 1 along the rows in its convolutions"
            )
        apart = (n, len(orders))
        return maps.unflatten(0, apart), predicted_classes(found.output).unflatten(0, apart)

"""What a metric returns: a number per image, whether it can be trusted, and everything that it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.functional import at_least_float32

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Status(IntEnum):
    """Whether the number of an image counts."""

    OK = 0
    DEGENERATE_MAP = 1
    """The map is constant, all zero, or not finite."""
    EMPTY_GT = 2
    """The mask of the image is empty."""
    NAN = 3
    """The number is not defined, or a score was not finite, or no probability where one is needed."""
    ERROR = 4
    """Nothing could be computed; set by those who run metrics over data sets."""


@dataclass(frozen=True, eq=False)
class MetricResult:
    """One number per image.

    Attributes:
        values: NaN where undefined. A number beside a status other than OK is what the formula gives, for the curious.
        status: a `Status` for each image. Means are over those that are OK.
        settings: everything else that changes the number.
        details: what was computed on the way, first axis n: curves, ties, chance levels.
    """

    values: Float[Tensor, " n"]
    status: Int[Tensor, " n"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> Bool[Tensor, " n"]:
        """Which images count."""
        return self.status == Status.OK

    @property
    def count(self) -> Int[Tensor, ""]:
        """How many images count; it belongs beside every mean."""
        return self.ok.sum()

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The mean of the images that count; NaN if there are none."""
        return self.values.where(self.ok, torch.nan).nanmean()


def measured(
    values: Float[Tensor, " n"],
    flags: Mapping[Status, Bool[Tensor, " n"]],
    settings: Mapping[str, Any] = _NOTHING,
    details: Mapping[str, Tensor] = _NOTHING,
) -> MetricResult:
    """Give every image its status: the first flag that holds, else NAN where the value is not finite, else OK."""
    values = at_least_float32(values.detach()).float()
    status = torch.where(values.isfinite(), int(Status.OK), int(Status.NAN))
    for flag, holds in reversed(list(flags.items())):
        status = status.masked_fill(holds, int(flag))
    return MetricResult(values, status, dict(settings), {name: detail.detach() for name, detail in details.items()})

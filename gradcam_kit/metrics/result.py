"""The result of a metric: a number and a status per image, and everything that the numbers depend on."""

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
    """Status of an image's number: OK if means include it, otherwise the reason why they do not."""

    OK = 0
    DEGENERATE_MAP = 1
    """The map is constant, all zero, or not finite."""
    EMPTY_GT = 2
    """The mask of the image is empty, or the image has no box."""
    NAN = 3
    """The number is undefined, a score is not finite, or a score that must be a probability is not one."""
    ERROR = 4
    """The number could not be computed; set by commands that measure data sets."""


@dataclass(frozen=True, eq=False)
class MetricResult:
    """One number per image, with a status for each.

    Attributes:
        values: the number of each image, NaN where it is undefined. A number whose status is not OK is the unfiltered
            result of the formula, kept for information only.
        status: a `Status` for each image. Means are taken over the images whose status is OK.
        settings: the options and other conditions on which the numbers depend.
        details: intermediate results with n as the first axis, such as curves, ties and chance levels.
        better: `Metric.better` of the metric that was called: "higher", "lower", or "" if neither is better.
    """

    values: Float[Tensor, " n"]
    status: Int[Tensor, " n"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    better: str = ""

    @property
    def ok(self) -> Bool[Tensor, " n"]:
        """The images with status OK, as a mask `(n,)`."""
        return self.status == Status.OK

    @property
    def count(self) -> Int[Tensor, ""]:
        """The number of images with status OK, to be reported with every mean."""
        return self.ok.sum()

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The mean over the images with status OK; NaN if there are none."""
        return self.values.where(self.ok, torch.nan).nanmean()


def measured(
    values: Float[Tensor, " n"],
    flags: Mapping[Status, Bool[Tensor, " n"]],
    settings: Mapping[str, Any] = _NOTHING,
    details: Mapping[str, Tensor] = _NOTHING,
) -> MetricResult:
    """Return a result whose status is the first flag set for an image, else NAN for a non-finite value, else OK."""
    values = at_least_float32(values.detach()).float()
    status = torch.where(values.isfinite(), int(Status.OK), int(Status.NAN))
    for flag, holds in reversed(list(flags.items())):
        status = status.masked_fill(holds, int(flag))
    return MetricResult(values, status, dict(settings), {name: detail.detach() for name, detail in details.items()})

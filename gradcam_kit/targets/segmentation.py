"""A target for dense predictions: the score of a class, summed over a region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from gradcam_kit.errors import ShapeError
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.targets.classes import ClassLogit
from gradcam_kit.targets.outputs import find_logits
from gradcam_kit.targets.values import Classes, changed, read_numbers, show


@dataclass(frozen=True, eq=False)
class SegmentationTarget:
    r"""The logit of a class, summed over a region: $\sum_p m_p z_{cp}$.

    The mask is m, and z are the logits at the positions p. This is the score of Seg-Grad-CAM (Vinogradova et al. 2020,
    arXiv 2002.11434). The model's output is a tensor `(n, classes, *p)`, or a mapping that has this tensor under "out"
    (torchvision) or "logits". An empty region scores 0, so its map is empty.

    Args:
        mask: the region, `(*p)` for all samples or `(n, *p)`, as booleans or weights. If its resolution differs from
            that of the output, the mask is resized by area: each position of the output is weighted by the share of its
            area in the region. None = the positions where the class is predicted in the unchanged images, or for a
            model with one output the positions where this output is positive.
        classes: an int for all samples, one per sample `(n,)`, or m per sample `(n, m)`.
        predicted: the predicted classes at all positions; filled in by `settle`.
        rows: the samples of the rows of the output; filled in by `select`.

    Raises:
        ShapeError: the output has no positions, or the mask does not fit its axes or the number of samples.
        InputError: the mask is not an array of finite numbers.
        ClassIndexError: the model does not have one of the classes.
    """

    mask: Any
    classes: Classes
    predicted: Int[Tensor, "n *p"] | None = field(default=None, repr=False, kw_only=True)
    rows: Int[Tensor, " m"] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", ClassLogit(self.classes).on_host().classes)
        if self.mask is not None:
            object.__setattr__(self, "mask", read_numbers("mask", self.mask))

    __repr__ = show

    def __call__(self, output: Any) -> Float[Tensor, "n *targets"]:
        """Return scores in logit units times positions, `(n,)`, or `(n, m)` for `(n, m)` classes."""
        logits = _read_dense(output)
        flat = logits.flatten(2)
        target = ClassLogit(self.classes)
        classes = (target if self.rows is None else target.select(self.rows)).indices(flat[..., 0])
        columns = classes.reshape(len(flat), -1)
        chosen = at_least_float32(flat.gather(1, columns[..., None].expand(-1, -1, flat.shape[2])))
        if self.mask is not None:
            region = self._region(logits)
        else:
            predicted = _predicted(logits) if self.predicted is None else self._rows_of(self.predicted)
            region = predicted.flatten(1)[:, None] == columns[..., None]
        return (chosen * region).sum(2).reshape(classes.shape)

    def settle(self, output: Any) -> SegmentationTarget:
        """Return the target with its region fixed: the positions where the class is predicted in this output."""
        return self if self.mask is not None else changed(self, predicted=_predicted(_read_dense(output)))

    def select(self, index: Int[Tensor, " m"]) -> SegmentationTarget:
        """Return the target for rows that belong to samples `index`."""
        # Only the output shows whether the mask has a sample axis, so rows are selected later.
        return changed(self, rows=index if self.rows is None else self.rows[index])

    def _rows_of(self, per_sample: Tensor) -> Tensor:
        return per_sample if self.rows is None else move(per_sample, self.rows.device)[self.rows]

    def _region(self, logits: Float[Tensor, "n classes *p"]) -> Float[Tensor, "r 1 positions"]:
        """Return the weights of the output's positions, for each sample or one for all."""
        n, size = len(logits), tuple(logits.shape[2:])
        shared = self.mask.ndim == len(size)
        mask = self.mask[None] if shared else self._rows_of(self.mask)
        if mask.ndim != len(size) + 1 or not (shared or len(mask) == n):
            axes = ", ".join("hwd"[: len(size)])
            raise ShapeError(
                f"the mask has shape {tuple(self.mask.shape)}; expected ({axes}) for all images or ({n}, {axes}): the "
                f"model's output has shape {tuple(logits.shape)}"
            )
        return interpolate(move(mask[:, None], logits.device), size=size, mode="area").flatten(2)


def _read_dense(output: Any) -> Float[Tensor, "n classes *p"]:
    out = output.get("out") if isinstance(output, Mapping) else None
    logits = out if isinstance(out, Tensor) else find_logits(output)
    if not 3 <= logits.ndim <= 5:
        raise ShapeError(
            f"the model's output has shape {tuple(logits.shape)}; SegmentationTarget needs (n, classes, *positions) "
            "with 1, 2 or 3 position axes. For class scores pass the classes themselves as targets"
        )
    return logits


def _predicted(logits: Float[Tensor, "n classes *p"]) -> Int[Tensor, "n *p"]:
    """Return the class with the largest logit, or for a single output 0 where it is positive, else 1 (no class)."""
    logits = logits.detach()
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] <= 0).long()

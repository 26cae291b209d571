"""Scores of changed inputs and of changed activations, in chunks, without a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.capture.inputs import Inputs, Runner
from gradcam_kit.capture.state import untouched
from gradcam_kit.capture.targets import score
from gradcam_kit.capture.trees import map_output
from gradcam_kit.functional import widen
from gradcam_kit.types import Target

_log = logging.getLogger("gradcam_kit")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Rescorer:
    """`rescore`: runs the whole model on changed images and scores each row with its own sample's target."""

    run: Runner
    inputs: Inputs
    target: Target
    output: Any
    batch_size: int

    def __call__(self, rows: Float[Tensor, "m c *t"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *targets"]:
        """Score the rows, `batch_size` in one pass."""
        images = self.inputs.images
        with untouched(self.run.model, images.device), torch.no_grad():
            scores = in_chunks(
                len(rows), self.batch_size, lambda chunk: self.score_pass(rows[chunk].to(images.dtype), index[chunk])
            )
        return widen(torch.cat(scores)) if scores else images.new_zeros(0)

    def score_pass(self, rows: Tensor, index: Tensor) -> Tensor:
        """Scores `(m, *targets)` from one forward pass."""
        output = self.run(self.inputs.with_images(rows, index))
        with self.run.context():
            if hasattr(self.target, "select"):
                return score(self.target.select(index), output, len(index))
            return self._score_by_sample(output, index)

    def _score_by_sample(self, output: Any, index: Tensor) -> Tensor:
        """Show each row to the target at the place of its sample, in an output that is otherwise the clean one."""
        scores: list[Tensor] = []
        for row in range(len(index)):
            whose = index[row : row + 1]
            merged = _with_row(self.output, output, row, whose, (self.inputs.n, len(index)))
            scores.append(score(self.target, merged, self.inputs.n)[whose])
        return torch.cat(scores)


def in_chunks(rows: int, batch_size: int, work: Callable[[slice], _Result]) -> list[_Result]:
    """The results of the passes over all rows, `batch_size` at a time, or fewer where the device's memory ends."""
    results, start = [], 0
    while start < rows:
        try:
            results.append(work(slice(start, start + batch_size)))
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = batch_size // 2
            _log.warning("out of memory: %d rows in a pass from here on; pass batch_size=%d", batch_size, batch_size)
            continue
        start += batch_size
    return results


def _with_row(clean: Any, changed: Any, row: int, whose: Tensor, sizes: tuple[int, int]) -> Any:
    """The clean output with the entry of one sample replaced by row `row` of a changed one; `sizes` of both batches."""

    def length(value: Any) -> int | None:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else None

    def is_per_sample(value: Any) -> bool:
        """Lists with one entry per sample, as detection models return; not lists of batches."""
        return type(value) is list and len(value) == sizes[0] and any(length(entry) != sizes[0] for entry in value)

    def place(old: Any, new: Any) -> Any:
        if (length(old), length(new)) == sizes:
            return old.index_copy(0, whose, new[row : row + 1].to(old.dtype))
        if not is_per_sample(old):
            return old
        if len(new) != sizes[1]:
            return [map_output(place, *entries) for entries in zip(old, new, strict=True)]
        return [new[row] if sample == int(whose) else entry for sample, entry in enumerate(old)]

    return map_output(place, clean, changed, is_leaf=is_per_sample)

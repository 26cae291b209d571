"""Scores of changed inputs and of changed activations, in chunks, without a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gradcam_kit.capture.hooks import LayerRecord
from gradcam_kit.capture.inputs import Inputs, Runner
from gradcam_kit.capture.state import untouched
from gradcam_kit.capture.targets import score
from gradcam_kit.functional import widen
from gradcam_kit.types import Target


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
            scores = [
                self.score_pass(rows[chunk].to(images.dtype), index[chunk])
                for chunk in chunks(len(rows), self.batch_size)
            ]
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
            merged = _with_row(self.output, output, row, whose, self.inputs.n)
            scores.append(score(self.target, merged, self.inputs.n).index_select(0, whose))
        return torch.cat(scores)


@dataclass(frozen=True)
class Replayer:
    """`replay`: scores as if the layer had produced these activations."""

    rescorer: Rescorer
    record: LayerRecord

    def __call__(self, rows: Float[Tensor, "m k *s"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *targets"]:
        """Run the model on the original images of the rows, with the layer's output replaced."""
        inputs, record = self.rescorer.inputs, self.record
        assert record.layout is not None
        original = record.captured[0].detach()
        scores: list[Tensor] = []
        with untouched(self.rescorer.run.model, inputs.images.device), torch.no_grad():
            for chunk in chunks(len(rows), self.rescorer.batch_size):
                whose = index[chunk]
                native = record.layout.to_native(rows[chunk].to(original.dtype), original.index_select(0, whose))
                handle = record.module.register_forward_hook(_substitution(record, native))
                try:
                    scores.append(self.rescorer.score_pass(inputs.images.index_select(0, whose), whose))
                finally:
                    handle.remove()
        return widen(torch.cat(scores)) if scores else inputs.images.new_zeros(0)


def chunks(rows: int, batch_size: int) -> Iterator[slice]:
    """The rows of each pass."""
    return (slice(start, start + batch_size) for start in range(0, rows, batch_size))


def _substitution(record: LayerRecord, native: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        leaves, spec = tree_flatten(output)
        leaves[record.chosen[0]] = native
        return tree_unflatten(leaves, spec)

    return hook


def _with_row(clean: Any, changed: Any, row: int, whose: Tensor, n: int) -> Any:
    """The clean output with the entry of one sample replaced by row `row` of a changed output."""
    if isinstance(clean, list) and len(clean) == n:
        return [changed[row] if i == int(whose) else entry for i, entry in enumerate(clean)]

    def place(old: Any, new: Any) -> Any:
        if not isinstance(old, Tensor) or old.ndim == 0 or old.shape[0] != n:
            return old
        return old.index_copy(0, whose, new[row : row + 1].to(old.dtype))

    return tree_map(place, clean, changed)

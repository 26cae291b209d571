"""Score changed inputs and changed activations, in chunks and without a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.capture.deferred_checks import on_host
from gradcam_kit.capture.model.compiled import is_compiled_around, parts_compiled
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.memory_format import PackedWeights
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.model.trees import device_of, map_output, move_tree
from gradcam_kit.capture.rerun.counting import count_rows
from gradcam_kit.errors import (
    CaptureError,
    GradCamKitError,
    OptionError,
    TargetError,
    interruption,
    is_out_of_memory,
    kind_of,
)
from gradcam_kit.functional import at_least_float32
from gradcam_kit.targets.classes import score
from gradcam_kit.types import Rescore, Target

_log = logging.getLogger("gradcam_kit")
_Result = TypeVar("_Result")
_NEAR = 5 * 2**19
"""Maximum number of bytes of rows per CPU thread. With more, results would leave the caches before they are used."""


def tolerance_of(precision: torch.dtype, device: torch.device) -> float:
    """Return the relative difference of scores that counts as rounding for a model of this precision.

    On CUDA, float32 convolutions keep only 10 bits of the mantissa by default (TensorFloat-32), and a different number
    of rows may be computed in a different order. For a whole network this adds up to 2e-4 to 4e-4.
    """
    if precision == torch.float32 and device.type == "cuda":
        return 5e-3
    return {torch.float16: 2e-2, torch.bfloat16: 5e-2}.get(precision, 1e-4)


def same_scores(found: Tensor, expected: Tensor, precision: torch.dtype) -> Bool[Tensor, ""]:
    """Whether scores differ only by rounding, for a model of this precision."""
    tolerance = tolerance_of(precision, found.device) * expected.abs().amax().clamp(min=1e-30)
    return ((found - expected).abs() <= tolerance).all()


def rows_at_once(most: int, row_bytes: int, device: torch.device) -> int:
    """Return how many rows of this size run in one pass: `most`, or on a CPU fewer if that is faster."""
    if device.type != "cpu":
        return most
    threads = torch.get_num_threads()
    return min(most, max(threads, threads * _NEAR // max(1, row_bytes)))


@dataclass
class RowState:
    """Facts learned from passes over changed rows, for later passes of the same call."""

    most: int | None = None
    """Maximum number of rows in one pass, halved after every out-of-memory error; None before the first one."""
    is_checked: bool = False
    """Whether `Rescorer.check` has run already."""
    is_bag: bool = False
    """Whether the model gives one score for all images together."""
    shares_inputs: bool = False
    """Whether inputs with n entries belong to the whole batch, not to its samples."""
    passes: int = 0
    weights: PackedWeights = field(default_factory=PackedWeights)


@dataclass(frozen=True)
class Rescorer:
    """The function `rescore`, which runs the model on changed images and scores each with its own sample's target.

    Attributes:
        run: runs the model.
        inputs: the inputs of the unchanged pass, with n images.
        target: the settled target.
        output: the model's output for the unchanged images.
        batch_size: maximum number of changed images in one forward pass.
        state: what earlier passes over changed images have shown.
    """

    run: Runner
    inputs: Inputs
    target: Target
    output: Any
    batch_size: int
    state: RowState = field(default_factory=RowState)

    def __call__(self, rows: Float[Tensor, "m c *t"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *targets"]:
        """Score the rows, at most `batch_size` in one pass."""
        images, model = self.inputs.images, self.run.model
        with untouched(model, images.device), parts_compiled(model), torch.no_grad():
            self.check()
            scores = self.in_chunks(
                len(rows),
                self.at_once(rows),
                lambda chunk: self.score_pass(rows[chunk].to(images.dtype), index[chunk]),
            )
        return at_least_float32(torch.cat(scores)) if scores else images.new_zeros(0)

    def check(self) -> None:
        """Find out whether other inputs with n entries belong to the samples or, like n prompts, to the whole batch.

        Raises:
            CaptureError: neither assumption reproduces the known scores, so that scores of rows would be wrong.
        """
        if self.state.is_checked or self.state.is_bag:
            return
        self.state.is_checked = True
        doubtful = self.inputs.per_sample()
        if not doubtful:
            return
        n = self.inputs.n
        # Use another order and number of rows, because the original ones would fit even inputs of the whole batch.
        index = (torch.arange(n + 1, device=self.inputs.images.device) + 1) % n
        with self.run.context():
            expected = self._here(at_least_float32(score(self.target, self.output, n)))[index]
        precision = self.run.precision(self.inputs.images)
        for shares_inputs in (False, True):
            self.state.shares_inputs = shares_inputs
            try:
                found = at_least_float32(self.score_pass(self.inputs.images[index], index))
            except (GradCamKitError, RuntimeError, ValueError, IndexError) as error:
                if is_out_of_memory(error):
                    raise
                _log.debug("rows with shares_inputs=%s fail: %s", shares_inputs, error)
                continue
            if found.shape == expected.shape and bool(on_host(same_scores(found, expected, precision))):
                return
        raise CaptureError(
            f"the model's inputs {', '.join(doubtful)} have {n} entries, like the images, but belong "
            "neither to single images nor to the whole batch; use a different batch size"
        )

    def score_pass(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return scores `(m, *targets)` from one forward pass."""
        if self.state.is_bag:
            return torch.cat([self.bag_pass(self.bag_with(row, whose)) for row, whose in zip(rows, index, strict=True)])
        output = self.run(self.inputs.with_images(rows, None if self.state.shares_inputs else index))
        there = move_tree(index, device_of(output, index.device))
        with self.run.context():
            if hasattr(self.target, "select"):
                scores = score(self.target.select(there), output, len(index))
            else:
                scores = self._score_by_sample(output, there)
        return self._here(scores)

    def bag_pass(self, images: Float[Tensor, "n c *t"]) -> Float[Tensor, "1 *targets"]:
        """Return the score of a whole bag of images."""
        output = self.run(self.inputs.with_images(images))
        with self.run.context():
            return self._here(score(self.target, output, self.inputs.n))

    def bag_with(self, row: Float[Tensor, "c *t"], whose: Int[Tensor, ""]) -> Float[Tensor, "n c *t"]:
        """Return the bag with one image changed."""
        images = self.inputs.images
        return images.index_copy(0, whose.view(1), row[None].to(images.dtype))

    def _here(self, scores: Tensor) -> Tensor:
        found: Tensor = move_tree(scores, self.inputs.images.device)
        return found

    def at_once(self, rows: Tensor) -> int:
        """Return how many rows of this kind run through the whole model in one pass."""
        return rows_at_once(self.batch_size, rows[:1].nbytes, rows.device)

    def in_chunks(self, rows: int, most: int, work: Callable[[slice], _Result]) -> list[_Result]:
        """Return the results for all rows, `most` per pass, or fewer if the device runs out of memory."""
        results, start = [], 0
        while start < rows:
            size = min(self.state.most or most, most, rows - start)
            try:
                results.append(self._pass(work, slice(start, start + size)))
            except Exception as error:
                if size == 1 or not is_out_of_memory(error) or interruption(error) is not None:
                    raise
                self.state.most = size // 2
                _log.warning(
                    "out of memory: reducing the rows per pass to %d; to avoid this, pass batch_size=%d",
                    size // 2,
                    size // 2,
                )
                continue
            start += size
            count_rows(size)
        return results

    def _pass(self, work: Callable[[slice], _Result], chunk: slice) -> _Result:
        """Run one pass. From the second pass on, use converted copies of the weights if they pay off."""
        self.state.passes += 1
        ordered = self.inputs.memory_format == torch.channels_last and not is_compiled_around(self.run.model)
        if self.state.passes > 1 and ordered and not self.state.weights.failed:
            with self.state.weights.standing_in(self.run.model):
                return work(chunk)
        return work(chunk)

    def _score_by_sample(self, output: Any, index: Tensor) -> Tensor:
        """Score each row at the position of its sample, in an output that is otherwise unchanged."""
        scores: list[Tensor] = []
        for row in range(len(index)):
            whose = index[row : row + 1]
            merged = _with_row(self.output, output, row, whose, (self.inputs.n, len(index)))
            scores.append(score(self.target, merged, self.inputs.n)[whose])
        return torch.cat(scores)


def in_half_precision(rows: Rescore, dtype: torch.dtype) -> Rescore:
    """Return a function that computes the same scores under autocast.

    Raises:
        OptionError: the images are in double precision, which autocast does not change.
    """
    assert isinstance(rows, Rescorer)
    if rows.inputs.images.dtype == torch.float64:
        raise OptionError(
            f"dtype is {dtype}, and the images are {torch.float64}, which autocast does not change; use "
            "float32 for the model and the images, or leave dtype out"
        )
    return replace(rows, run=replace(rows.run, autocast=True, autocast_dtype=dtype))


def by_similarity(rows: Rescorer) -> Rescorer:
    """Return the same passes, scored by the similarity of detections to the detection that the target explains.

    Raises:
        TargetError: the target does not explain a detection.
    """
    if not hasattr(rows.target, "similarity"):
        raise TargetError(
            f"the target is {kind_of(rows.target)}, but this method scores the similarity of detections; "
            "pass targets=DetectionTarget(box), or one of the targets from DetectionTarget.of(output)"
        )
    with torch.no_grad():
        return replace(rows, target=rows.target.similarity(rows.output))


def _with_row(clean: Any, changed: Any, row: int, whose: Tensor, sizes: tuple[int, int]) -> Any:
    """Return the clean output with one sample's entry replaced by row `row` of a changed output."""

    def length(value: Any) -> int | None:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else None

    def is_per_sample(value: Any) -> bool:
        """Whether a value is a list with one entry per sample, as detection models return it."""
        return type(value) is list and len(value) == sizes[0] and any(length(entry) != sizes[0] for entry in value)

    def place(old: Any, new: Any) -> Any:
        if (length(old), length(new)) == sizes:
            if old.shape[1:] != new.shape[1:]:
                raise CaptureError(
                    f"one row of the model's output has shape {tuple(old.shape[1:])} for the batch and "
                    f"{tuple(new.shape[1:])} for changed rows; use a different batch size"
                )
            return old.index_copy(0, whose, new[row : row + 1].to(old.dtype))
        if not is_per_sample(old):
            return old
        if len(new) != sizes[1]:
            return [map_output(place, *entries) for entries in zip(old, new, strict=True)]
        return [new[row] if sample == int(whose) else entry for sample, entry in enumerate(old)]

    return map_output(place, clean, changed, is_leaf=is_per_sample)

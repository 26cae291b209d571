"""Explain batches of pictures with several methods; the results are rows with heatmaps."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import rows_at_once
from gradcam_kit.errors import (
    ClassIndexError,
    GradCamKitError,
    InputError,
    MethodError,
    UnknownNameError,
    exits_refused,
    is_out_of_memory,
    raise_interruption,
)
from gradcam_kit.jobs.request import Targets, one_line
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.labels import Labels
from gradcam_kit.jobs.storage.rows import Row, method_name
from gradcam_kit.jobs.work.batches import Batch, Fit
from gradcam_kit.jobs.work.explained_rows import RowMaker
from gradcam_kit.jobs.work.measuring import MeasuredBatch, Measurer, mark_unmeasured
from gradcam_kit.jobs.work.reader import Decoded, Failed
from gradcam_kit.methods import BaseCAM, explain_many
from gradcam_kit.metrics import Metric
from gradcam_kit.models import LoadedModel
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import ScoreKind


@dataclass(frozen=True)
class Explained:
    """One picture of a run.

    Attributes:
        rows: one row per method and target; for a failure, one per method.
        error: the exception of the model or a method; None for success, or if the model was not called.
        thumbnail: a small JPEG, if requested.
    """

    entry: Entry
    rows: list[Row]
    error: Exception | None = None
    thumbnail: bytes | None = None

    @property
    def reached_model(self) -> bool:
        """Whether the picture was passed to the model, so that it was neither unreadable nor rejected beforehand."""
        return self.error is not None or self.rows[0]["status"] == "ok"


@dataclass(frozen=True)
class Explainer:
    """Explains batches of pictures.

    Attributes:
        loaded: the loaded model with its transform and class names.
        model: the model on its device.
        cams: the methods.
        targets: the classes to explain.
        labels: maps labels to classes.
        device: the device of the model.
        dtype: the precision of the model's passes.
        fit: limits of the device's memory; shared by copies of this explainer.
        metrics: metrics to measure for every heatmap.
        scores: kind of the class scores.
        say: called with messages for the user.

    Passes without gradients run under `no_grad`, not `inference_mode`, because autograd rejects tensors that a model
    keeps from a pass in `inference_mode`, such as a cached grid of positions.
    """

    loaded: LoadedModel
    model: nn.Module
    cams: tuple[BaseCAM, ...]
    targets: Targets
    labels: Labels
    device: torch.device
    dtype: torch.dtype
    fit: Fit = field(default_factory=Fit)
    metrics: tuple[Metric, ...] = ()
    scores: ScoreKind | None = None
    say: Callable[[str], None] = lambda _: None

    def explain(self, batch: Batch) -> Iterator[Explained]:
        """Explain the pictures that could be read, with all methods together, and yield a result per picture, in order.

        A batch that fails is halved until only the faulty pictures fail, or until it fits into the memory of the
        device. A batch with images of different sizes is halved too.
        """
        items = [self._labeled(one) for one in batch.items]
        ready = [one for one in items if isinstance(one, Decoded)]
        whole = batch if len(ready) == sum(isinstance(one, Decoded) for one in batch.items) else Batch(items)
        explained = iter(self._explain_group(ready, whole) if ready else [])
        for one in items:
            if isinstance(one, Failed):
                yield Explained(one.entry, self._failed(one.entry, one.reason))
            else:
                yield next(explained)

    @property
    def names(self) -> list[str]:
        """The names of the methods in rows."""
        return [method_name(cam) for cam in self.cams]

    def images(self, items: Sequence[Decoded], sent: Batch | None = None) -> Float[Tensor, "n c h w"]:
        """Return the model inputs of the pictures."""
        batch = sent if sent is not None and sent.images is not None else Batch.sent(items, self.device)
        images = batch.arrived_images()
        if images is None:
            raise InputError(f"the transform of {self.loaded.spec} gives images of different sizes; expected one size")
        return self.loaded.transform.finish(images).contiguous()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Set process-wide settings that speed up the device, and restore them afterwards."""
        with ExitStack() as settings:
            if self.device.type == "cuda":
                settings.enter_context(torch.cuda.device(self.device))
                # Do not use `cudnn.flags`, which also changes settings that are not passed, such as TF32.
                settings.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
                torch.backends.cudnn.benchmark = True
            yield

    def suits(self, cam: BaseCAM, one: Decoded) -> bool:
        """Whether a method can explain a picture with this model."""
        return all(found.error is None for found in replace(self, cams=(cam,)).explain(Batch([one])))

    def _explain_group(self, group: list[Decoded], sent: Batch | None = None) -> list[Explained]:
        image_bytes = 4 * prod(group[0].image.shape)  # in float32
        part = rows_at_once(self.fit.most or len(group), image_bytes, self.device)
        failure: Exception | None = None
        if len(group) <= part:
            try:
                return self.explained(group, sent)
            except Exception as error:  # no error may end a run
                raise_interruption(error)
                if is_out_of_memory(error) and (len(group) > 1 or self._fewer_rows()):
                    self._shrink(max(1, len(group) // 2))
                elif len(group) == 1:
                    return [self._given_up(group[0], self._fault(group[0], error))]
                else:
                    traceback.clear_frames(error.__traceback__)
                    failure = error
            # Outside `except`, so that the traceback and the tensors it holds are freed.
            part = max(1, len(group) // 2)
        found = [
            one for start in range(0, len(group), part) for one in self._explain_group(group[start : start + part])
        ]
        if failure is not None and all(one.error is None for one in found):
            self._check_again(group, failure)
        return found

    def takes(self, one: Decoded) -> bool:
        """Whether a plain forward pass succeeds on this image."""
        try:
            with torch.no_grad(), self.precision():
                self.model(self.images([one]))
        except Exception as error:
            raise_interruption(error)
            return False
        return True

    def _fault(self, one: Decoded, error: Exception) -> Exception:
        """Return the error of a picture that fails alone; blame the methods if a plain forward pass succeeds.

        Raises:
            Exception: the given error, if neither the model nor a method fails again.
        """
        if isinstance(error, GradCamKitError) or is_out_of_memory(error) or not self.takes(one):
            return error
        failing = [cam for cam in self.cams if self._fails(cam, one)]
        if not failing:
            raise error  # it did not recur, so neither the picture nor a method is at fault
        names = " and ".join(map(method_name, failing))
        return MethodError(f"{names} failed, although the model itself succeeded: {type(error).__name__}: {error}")

    def _fails(self, cam: BaseCAM, one: Decoded) -> bool:
        """Whether a method itself fails on an image, without metrics."""
        try:
            replace(self, cams=(cam,), metrics=()).explained([one])
        except Exception as error:
            raise_interruption(error)
            return True
        return False

    def _check_again(self, group: list[Decoded], failure: Exception) -> None:
        """Explain a failed batch again, if none of its images fails alone.

        Raises:
            Exception: the original error, if the batch does not fail again, because then the images are not at fault.
        """
        try:
            self.explained(group)
        except Exception as error:
            raise_interruption(error)
            if type(error) is type(failure) or is_out_of_memory(error):
                return  # the model fails only with this many images
        raise failure

    @exits_refused()
    def explained(self, group: list[Decoded], sent: Batch | None = None) -> list[Explained]:
        """Explain a batch in one pass, which succeeds or fails as a whole."""
        images = self.images(group, sent)
        cams = self._fitting_cams()
        with self.precision():
            explanations = explain_many(cams, images, self.classes(images, [one.entry for one in group]))
        size = int(images.shape[2]), int(images.shape[3])
        make = self._rows.explained
        columns = [make(cam, one, group, size) for cam, one in zip(cams, explanations, strict=True)]
        found = [[row for rows in columns for row in rows[i]] for i in range(len(group))]
        if self.metrics:
            self.measure(MeasuredBatch(images, found))
        return [Explained(one.entry, rows, None, one.thumbnail) for one, rows in zip(group, found, strict=True)]

    def measure(self, batch: MeasuredBatch) -> None:
        """Add the columns of the metrics to the rows of each image, for its heatmaps or for the baselines."""
        with self.precision():
            Measurer(self.model, self._fitting_cams(), self.metrics, self.scores).measure(batch)

    def precision(self) -> torch.autocast:
        """Return the context manager for the precision of the model's passes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _given_up(self, one: Decoded, error: Exception) -> Explained:
        reason = one_line(f"{type(error).__name__}: {error}")
        return Explained(one.entry, self._failed(one.entry, reason), error, one.thumbnail)

    def _failed(self, entry: Entry, reason: str) -> list[Row]:
        rows = self._rows.failed(entry, self.names, reason)
        mark_unmeasured(rows, self.metrics)
        return rows

    @property
    def _rows(self) -> RowMaker:
        return RowMaker(self.labels, self.scores)

    def _fitting_cams(self) -> tuple[BaseCAM, ...]:
        """Return the methods, with the masked images per forward pass limited to the number that fits into memory."""
        if (most := self.fit.rows) is None:
            return self.cams
        return tuple(_with_batch_size(cam, min(cam.batch_size, most)) for cam in self.cams)

    def _fewer_rows(self) -> bool:
        """Halve the limit of masked images per forward pass of methods; return False if it is already one image."""
        rows = max(cam.batch_size for cam in self._fitting_cams())
        if rows > 1:
            self.fit.rows = rows // 2
        return rows > 1

    def _shrink(self, most: int) -> None:
        self.fit.most = most
        rows = "" if self.fit.rows is None else f", masked images in batches of {self.fit.rows}"
        self.say(f"{self.device} ran out of memory; continuing with batches of {most}{rows}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def classes(self, images: Tensor, entries: Sequence[Entry]) -> Any:
        """Return the argument `targets` for the methods."""
        if self.targets.kind in ("predicted", "class"):
            return None if self.targets.kind == "predicted" else self.targets.number
        if self.targets.kind == "label":
            return torch.tensor([self.labels.require(entry) for entry in entries])
        with torch.no_grad():
            logits = read_logits(self.model(images))
        if self.targets.number > logits.shape[1]:
            raise ClassIndexError(
                f"the targets are top:{self.targets.number}, but the number of classes is {logits.shape[1]}"
            )
        return logits.topk(self.targets.number).indices

    def _labeled(self, one: Decoded | Failed) -> Decoded | Failed:
        """Return the picture, or a failure if its label has to match a class but does not."""
        if self.targets.kind == "label" and isinstance(one, Decoded):
            try:
                self.labels.require(one.entry)
            except UnknownNameError as error:
                return Failed.because(one.entry, error)
        return one


def _with_batch_size(cam: BaseCAM, batch_size: int) -> BaseCAM:
    """Return a copy of a method with another batch size, because the original may be the user's."""
    copied = copy(cam)
    copied.batch_size = batch_size
    return copied

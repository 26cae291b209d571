"""A model on its device with the methods that explain it: batches of pictures in, rows with heatmaps out."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradcam_kit.capture import ClassLogit, choose_layers, read_inputs, resolve_target, rows_at_once
from gradcam_kit.errors import (
    ClassIndexError,
    InputError,
    OptionError,
    UnknownNameError,
    exits_refused,
    is_out_of_memory,
    raise_interruption,
)
from gradcam_kit.functional import move
from gradcam_kit.jobs.request import Targets, one_line
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.labels import Labels
from gradcam_kit.jobs.storage.rows import Row, explained_rows, failed_rows, method_name
from gradcam_kit.jobs.work.batches import Batch, Fit
from gradcam_kit.jobs.work.blame import at_fault, blamed, check_again, check_bytes, make_method
from gradcam_kit.jobs.work.measuring import mark_unmeasured, measure
from gradcam_kit.jobs.work.reader import Decoded, Failed
from gradcam_kit.methods import BaseCAM, explain_many
from gradcam_kit.metrics import Metric
from gradcam_kit.models import LoadedModel
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import ScoreKind
from gradcam_kit.types import LayerChoice


@dataclass(frozen=True)
class Explained:
    """One picture of a run.

    Attributes:
        rows: one per method and target; for a failure one per method.
        error: what the model or a method failed with; None also for pictures that could not be read.
        thumbnail: a small JPEG, if one was wanted.
    """

    entry: Entry
    rows: list[Row]
    error: Exception | None = None
    thumbnail: bytes | None = None

    @property
    def reached_model(self) -> bool:
        """Whether the picture could be read."""
        return self.error is not None or self.rows[0]["status"] == "ok"


@dataclass(frozen=True)
class Explainer:
    """Everything that is loaded once; `metrics` are measured for every heatmap, `scores` is what a score is.

    Passes that need no gradients run under `no_grad`: what a model keeps from one under `inference_mode`, such as a
    grid of positions, could enter no graph later.
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

    def explain(self, batch: Batch) -> Iterator[Explained]:
        """Explain the pictures that could be read, all methods on one pass; results keep the order of the batch.

        A batch that fails is halved until only the pictures at fault fail, or until it fits into the memory of the
        device. So is one of pictures whose transform keeps their own sizes.
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
        """The methods, as rows call them."""
        return [method_name(cam) for cam in self.cams]

    def send(self, items: Sequence[Decoded | Failed], stream: torch.cuda.Stream | None = None) -> Batch:
        """Start to bring pictures to the device; on a stream of its own, while the model works on others."""
        images = [one.image for one in items if isinstance(one, Decoded)]
        if not images or len({tuple(image.shape) for image in images}) > 1:
            return Batch(items)
        stacked = torch.stack([image if isinstance(image, Tensor) else torch.from_numpy(image) for image in images])
        if stream is None:
            return Batch(items, move(stacked, self.device))
        with torch.cuda.stream(stream):
            return Batch(items, move(stacked, self.device), stream.record_event())

    def images(self, items: Sequence[Decoded], sent: Batch | None = None) -> Float[Tensor, "n c h w"]:
        """The pictures as the model takes them."""
        batch = sent if sent is not None and sent.images is not None else self.send(items)
        if batch.images is None:
            raise InputError(f"the transform of {self.loaded.spec} gives images of different sizes")
        if batch.arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(batch.arrived)
            batch.images.record_stream(current)
        return self.loaded.transform.finish(batch.images).contiguous()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Settings of the process that make the device fast, restored afterwards."""
        with ExitStack() as settings:
            if self.device.type == "cuda":
                settings.enter_context(torch.cuda.device(self.device))
                # Not by `flags`, which turns on what it is not told to turn off, such as TF32.
                settings.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
                torch.backends.cudnn.benchmark = True
            yield

    def with_methods(
        self,
        methods: Iterable[type[BaseCAM]],
        layers: Sequence[str],
        image: Decoded | None,
        batch_size: int,
        gradient_rule: str = "exact",
    ) -> Explainer:
        """The same with methods on the given layers; without any, on those chosen once, for this image.

        Raises:
            GradCamKitError: a layer or method that does not suit the model, or a model that cannot take the image.
        """
        images = None if image is None else self.images([image])
        chosen: dict[LayerChoice, list[str] | None] = {choice: None for choice in LayerChoice if choice.is_fixed}
        cams = []
        for method in methods:
            choice = method.layer_choice
            if not layers and images is not None and choice not in chosen:
                chosen[choice] = self._chosen(choice, images)
            cams.append(make_method(method, self.model, list(layers) or chosen.get(choice), batch_size, gradient_rule))
        if images is not None:
            self._check_outputs(images)
        if image is not None and isinstance(image.image, Tensor) and image.image.dtype == torch.uint8:
            check_bytes(self, image.image)
        return replace(self, cams=tuple(cams))

    def suits(self, cam: BaseCAM, one: Decoded) -> bool:
        """Whether a method can explain a picture with this model."""
        return all(found.error is None for found in replace(self, cams=(cam,)).explain(Batch([one])))

    def _chosen(self, choice: LayerChoice, images: Tensor) -> list[str]:
        target = self.targets.number if self.targets.kind == "class" else None
        try:
            inputs, resolved = read_inputs(images, {}), resolve_target(target, ClassLogit)
            return list(choose_layers(self.model, inputs, resolved, ClassLogit, choice))
        except Exception as error:
            raise_interruption(error)
            raise blamed(self, error) from error

    def _check_outputs(self, images: Tensor) -> None:
        """Refuse class names that are not those of the model, and the softmax of a single output."""
        names = self.loaded.class_names
        if names is None and self.scores is None:
            return
        try:
            with torch.no_grad():
                classes = read_logits(self.model(images)).shape[1]
        except Exception as error:  # what the model cannot do is said when it is asked to explain
            raise_interruption(error)
            return
        if classes == 1 and self.scores == "softmax":
            raise OptionError(f"the softmax of {self.loaded.spec}'s single output is always 1; choose sigmoid or raw")
        if names is not None and len(names) != classes:
            raise OptionError(
                f"there are {len(names)} class names and {self.loaded.spec} has {classes} outputs; give one name on a "
                "line for each, in the order of the outputs (--class-names)"
            )

    def _explain_group(self, group: list[Decoded], sent: Batch | None = None) -> list[Explained]:
        image_bytes = 4 * prod(group[0].image.shape)  # in float32
        part = rows_at_once(self.fit.most or len(group), image_bytes, self.device)
        failure: Exception | None = None
        if len(group) <= part:
            try:
                return self.explained(group, sent)
            except Exception as error:  # whatever it is, it ends no run
                raise_interruption(error)
                if is_out_of_memory(error) and (len(group) > 1 or self._fewer_rows()):
                    self._shrink(max(1, len(group) // 2))
                elif len(group) == 1:
                    return [self._given_up(group[0], at_fault(self, group[0], error))]
                else:
                    traceback.clear_frames(error.__traceback__)
                    failure = error
            part = max(1, len(group) // 2)  # only here the error is gone, and with it what it kept in memory
        found = [
            one for start in range(0, len(group), part) for one in self._explain_group(group[start : start + part])
        ]
        if failure is not None and all(one.error is None for one in found):
            check_again(self, group, failure)
        return found

    def takes(self, one: Decoded) -> bool:
        """Whether the model takes a picture, be it that no method can explain it."""
        try:
            with torch.no_grad(), self.precision():
                self.model(self.images([one]))
        except Exception as error:
            raise_interruption(error)
            return False
        return True

    @exits_refused()
    def explained(self, group: list[Decoded], sent: Batch | None = None) -> list[Explained]:
        """Explain a batch in one pass, which fails as a whole."""
        images = self.images(group, sent)
        with self.precision():
            explanations = explain_many(self.cams, images, self.classes(images, [one.entry for one in group]))
        size = int(images.shape[2]), int(images.shape[3])
        columns = [
            explained_rows(cam, explanation, group, self.labels, size, self.scores)
            for cam, explanation in zip(self.cams, explanations, strict=True)
        ]
        found = [[row for rows in columns for row in rows[i]] for i in range(len(group))]
        if self.metrics:
            self.measure(images, found)
        return [Explained(one.entry, rows, None, one.thumbnail) for one, rows in zip(group, found, strict=True)]

    def measure(
        self,
        images: Tensor,
        found: Sequence[Sequence[Row]],
        baselines: bool = False,
        masks: Bool[Tensor, "n h w"] | None = None,
    ) -> None:
        """Add the columns of the metrics to the rows of each image: of its heatmaps, or of the baselines."""
        with self.precision():
            measure(self.model, self.cams, self.metrics, images, found, baselines, masks, self.scores)

    def precision(self) -> torch.autocast:
        """The precision of the model's passes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _given_up(self, one: Decoded, error: Exception) -> Explained:
        reason = one_line(f"{type(error).__name__}: {error}")
        return Explained(one.entry, self._failed(one.entry, reason), error, one.thumbnail)

    def _failed(self, entry: Entry, reason: str) -> list[Row]:
        rows = failed_rows(entry, self.labels, self.names, reason)
        mark_unmeasured(rows, self.metrics)
        return rows

    def _fewer_rows(self) -> bool:
        """Halve the masked rows that methods send through the model at once; False if they are single already."""
        if all(cam.batch_size == 1 for cam in self.cams):
            return False
        for cam in self.cams:
            cam.batch_size = max(1, cam.batch_size // 2)
        return True

    def _shrink(self, most: int) -> None:
        self.fit.most = most
        self.fit.say(f"the memory of {self.device} is too small; going on with batches of {most}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def classes(self, images: Tensor, entries: Sequence[Entry]) -> Any:
        """What the methods take as `targets`."""
        if self.targets.kind in ("predicted", "class"):
            return None if self.targets.kind == "predicted" else self.targets.number
        if self.targets.kind == "label":
            return torch.tensor([self.labels.require(entry) for entry in entries])
        with torch.no_grad():
            logits = read_logits(self.model(images))
        if self.targets.number > logits.shape[1]:
            raise ClassIndexError(f"top:{self.targets.number} is asked of a model with {logits.shape[1]} classes")
        return logits.topk(self.targets.number).indices

    def _labeled(self, one: Decoded | Failed) -> Decoded | Failed:
        """The picture, failed if its label has to name a class and does not."""
        if self.targets.kind == "label" and isinstance(one, Decoded):
            try:
                self.labels.require(one.entry)
            except UnknownNameError as error:
                return Failed.because(one.entry, error)
        return one

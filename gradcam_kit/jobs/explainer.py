"""A model on its device with the methods that explain it: batches of pictures in, rows and heatmaps out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor, nn

from gradcam_kit.capture import ClassLogit, ClassProbability, choose_layers, read_inputs, resolve_target
from gradcam_kit.capture.targets import read_logits
from gradcam_kit.errors import (
    ClassIndexError,
    GradCamKitError,
    InputError,
    NonFiniteError,
    UnknownNameError,
    did_you_mean,
)
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.jobs.decode import Decoded, Failed, batches, decoded
from gradcam_kit.jobs.index import Entry
from gradcam_kit.jobs.request import Targets, one_line
from gradcam_kit.jobs.store import Row
from gradcam_kit.methods import METHODS, BaseCAM, Explanation, explain_many
from gradcam_kit.models import LoadedModel
from gradcam_kit.transforms import Box
from gradcam_kit.types import LayerChoice


@dataclass(frozen=True)
class Explained:
    """One picture of a run.

    Attributes:
        box: the part that the model saw; None for a picture that never reached it.
        rows: one per method and target; for a failure one per method.
        explanations: method -> explanation of the batch that the picture was in; empty for a failure.
        index: of the picture in that batch.
        error: why there is no explanation.
    """

    entry: Entry
    box: Box | None
    rows: list[Row]
    explanations: Mapping[str, Explanation] = field(default_factory=dict)
    index: int = 0
    error: Exception | None = None

    def heatmaps(self) -> dict[str, Float[np.ndarray, "m h w"]]:
        """Method -> heatmaps of the targets, in [0, 1] at the size of the model's input; made when asked for."""
        found = {name: explanation.heatmaps[self.index] for name, explanation in self.explanations.items()}
        return {name: maps.reshape(-1, *maps.shape[-2:]).cpu().numpy() for name, maps in found.items()}


@dataclass(frozen=True)
class Explainer:
    """Everything that is loaded once."""

    loaded: LoadedModel
    model: nn.Module
    cams: tuple[BaseCAM, ...]
    targets: Targets
    device: torch.device
    dtype: torch.dtype

    def stream(
        self, entries: Iterable[Entry], workers: int, batch_size: int, verify: bool = True
    ) -> Iterator[Explained]:
        """Read and explain pictures, in order.

        Args:
            entries: what to explain.
            workers: threads that read.
            batch_size: pictures in one forward pass.
            verify: while no picture could be explained, blame the request and not each of the pictures.

        Raises:
            GradCamKitError: the model or a method cannot take any of the first pictures.
        """
        for batch in batches(decoded(entries, self.loaded.transform, workers, ahead=2 * batch_size), batch_size):
            results = self.explain(batch)
            if verify:
                _blame_request(results, self.loaded.spec)
                verify = all(explained.error is not None for explained in results)
            yield from results

    def explain(self, batch: Sequence[Decoded | Failed]) -> list[Explained]:
        """Explain the pictures that could be read, all methods on one pass; results keep the order of the batch.

        When a batch fails, its pictures are explained one by one, so that only the one at fault suffers; so are
        pictures whose transform keeps their own sizes.
        """
        labeled = [self._labeled(one) for one in batch]
        ready = [one for one in labeled if isinstance(one, Decoded)]
        explained = iter(self._explain_group(ready) if ready else [])
        return [self._failed(one, one.error) if isinstance(one, Failed) else next(explained) for one in labeled]

    def images(self, batch: Iterable[Float[Tensor, "3 h w"]]) -> Float[Tensor, "n 3 h w"]:
        """The batch as the model takes it."""
        return torch.stack(list(batch)).to(self.device, self.dtype, non_blocking=True)

    def with_methods(
        self, methods: Iterable[str], layers: Sequence[str], images: Float[Tensor, "n 3 h w"] | None, batch_size: int
    ) -> Explainer:
        """The same with methods on the given layers; without any, on those chosen automatically for these images.

        One choice for all pictures keeps rows comparable and independent of their batches, and costs no pass per batch.

        Raises:
            GradCamKitError: a layer or method that does not suit the model, or a model that cannot take the images.
        """
        chosen: dict[LayerChoice, list[str] | None] = {choice: None for choice in LayerChoice if choice.is_fixed}
        cams = []
        for method in methods:
            choice = METHODS[method].layer_choice
            if not layers and images is not None and choice not in chosen:
                chosen[choice] = self._chosen(choice, images)
            names = list(layers) or chosen.get(choice)
            cams.append(METHODS[method](self.model, names, batch_size=batch_size))
        return replace(self, cams=tuple(cams))

    def suits(self, cam: BaseCAM, one: Decoded) -> bool:
        """Whether a method can explain a picture with this model."""
        return replace(self, cams=(cam,)).explain([one])[0].error is None

    def _chosen(self, choice: LayerChoice, images: Tensor) -> list[str]:
        target = self.targets.number if self.targets.kind == "class" else None
        try:
            inputs, resolved = read_inputs(images, {}), resolve_target(target, ClassLogit)
            return list(choose_layers(self.model, inputs, resolved, ClassLogit, choice))
        except Exception as error:
            raise _as_request_error(error, self.loaded.spec) from error

    def _explain_group(self, group: list[Decoded]) -> list[Explained]:
        try:
            images = self.images(one.image for one in group)
            explanations = explain_many(self.cams, images, self.classes(images, [one.entry for one in group]))
            columns = [self._rows(*pair, group) for pair in zip(self.cams, explanations, strict=True)]
        except Exception as error:  # whatever it is, it ends no run
            if len(group) > 1:
                return [explained for one in group for explained in self._explain_group([one])]
            return [self._failed(group[0], error)]
        by_name = {cam.name: explanation for cam, explanation in zip(self.cams, explanations, strict=True)}
        return [
            Explained(one.entry, one.box, [row for rows in columns for row in rows[i]], by_name, i)
            for i, one in enumerate(group)
        ]

    def classes(self, images: Tensor, entries: Sequence[Entry]) -> Any:
        """What the methods take as `targets`."""
        if self.targets.kind == "predicted":
            return None
        if self.targets.kind == "class":
            return self.targets.number
        if self.targets.kind == "label":
            return torch.tensor([self._label_index(entry) for entry in entries])
        with torch.no_grad():
            logits = read_logits(self.model(images))
        if self.targets.number > logits.shape[1]:
            raise ClassIndexError(f"top:{self.targets.number} is asked of a model with {logits.shape[1]} classes")
        return logits.topk(self.targets.number).indices

    def _labeled(self, one: Decoded | Failed) -> Decoded | Failed:
        """The picture, failed if its folder has to name a class and does not."""
        if self.targets.kind == "label" and isinstance(one, Decoded):
            try:
                self._label_index(one.entry)
            except UnknownNameError as error:
                return Failed(one.entry, error)
        return one

    def _label_index(self, entry: Entry) -> int:
        names, label = self.loaded.class_names or (), entry.label or ""
        if names.count(label) != 1:
            hint = did_you_mean(label, names)
            raise UnknownNameError(f"the folder {label!r} names {names.count(label)} classes{hint}")
        return names.index(label)

    def _rows(self, cam: BaseCAM, explanation: Explanation, group: Sequence[Decoded]) -> list[list[Row]]:
        """For each picture the rows of one method, one per target."""
        maps = _stored(cam, explanation)
        empty = explanation.is_empty.reshape(len(group), -1).tolist()
        unknown: list[list[Any]] = [[None] * maps.shape[1]] * len(group)
        classes, scores = unknown, unknown
        if explanation.targets is not None:
            probabilities = ClassProbability(explanation.targets)(explanation.output)
            classes = explanation.targets.reshape(len(group), -1).tolist()
            scores = probabilities.reshape(len(group), -1).tolist()
        return [
            [
                {
                    **_shared(one.entry, cam.name, "ok"),
                    "layer": "+".join(explanation.layers),
                    "target": classes[i][j],
                    "target_name": self._class_name(classes[i][j]),
                    "score": scores[i][j],
                    "is_empty": empty[i][j],
                    "heatmap": maps[i, j].tobytes(),
                    "height": maps.shape[2],
                    "width": maps.shape[3],
                    "box": one.box,
                }
                for j in range(maps.shape[1])
            ]
            for i, one in enumerate(group)
        ]

    def _failed(self, one: Decoded | Failed, error: Exception) -> Explained:
        said = one_line(f"{type(error).__name__}: {error}")
        rows = [{**_shared(one.entry, cam.name, "error"), "error": said} for cam in self.cams]
        return Explained(one.entry, one.box if isinstance(one, Decoded) else None, rows, error=error)

    def _class_name(self, index: int | None) -> str | None:
        names = self.loaded.class_names
        return names[index] if names is not None and index is not None and index < len(names) else None


def _blame_request(batch: Sequence[Explained], spec: str) -> None:
    """Raise when every picture that reached the model failed there: no picture is at fault then, but the request.

    Raises:
        GradCamKitError: what the first of them failed with.
    """
    errors = [explained.error for explained in batch if explained.box is not None]
    if errors and all(error is not None and not isinstance(error, NonFiniteError) for error in errors):
        raise _as_request_error(errors[0], spec)  # type: ignore[arg-type]


def _as_request_error(error: Exception, spec: str) -> GradCamKitError:
    if isinstance(error, GradCamKitError):
        return error
    wrapped = InputError(f"{spec} cannot take these pictures: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _stored(cam: BaseCAM, explanation: Explanation) -> Float16[np.ndarray, "n m h w"]:
    """The heatmaps at the layer's resolution; fused ones at that of the finest layer."""
    leading = explanation.is_empty.ndim
    if len(explanation.layers) == 1:
        saliency = explanation.saliency[explanation.layers[0]]
        maps = normalize(saliency.flatten(0, leading - 1).clamp(min=0), cam.normalize)
    else:
        finest = max((maps.shape[leading:] for maps in explanation.saliency.values()), key=math.prod)
        maps = upsample(explanation.heatmaps.flatten(0, leading - 1), finest)
    return maps.reshape(len(explanation.is_empty), -1, *maps.shape[1:]).cpu().numpy().astype("<f2")


def _shared(entry: Entry, method: str, status: str) -> Row:
    return {"path": entry.key, "status": status, "method": method, "label": entry.label}

"""`analyze_mistakes`: find the classes that a model confuses, and where it looks when it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gradcam_kit.capture import TargetLayers, check_model, read_inputs, score_kind
from gradcam_kit.comparison.compared import MethodLike, compared_methods
from gradcam_kit.comparison.confusions import ConfusedPair, MistakenImage, Mistakes
from gradcam_kit.comparison.gallery import flat_maps, shown_pictures
from gradcam_kit.diagnostics.checks.batches import BatchOf, main_input, moved, pairs_of
from gradcam_kit.diagnostics.checks.preserving import device_of
from gradcam_kit.diagnostics.compare.inputs import loaders_left_as_found
from gradcam_kit.errors import InputError, OptionError, ShapeError, kind_of
from gradcam_kit.methods import BaseCAM, Explanation
from gradcam_kit.options import one_of, whole
from gradcam_kit.pixels.pictures import encode_picture
from gradcam_kit.targets.names import carried_names, read_class_names
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import SCORES, WORDS, ScoreKind, are_probabilities, class_scores
from gradcam_kit.transforms import PictureTransform, as_transform

SIDE = 32
"""Height and width of mean heatmaps."""
_FINEST = 64  # maximum height and width of the heatmap of an example
_LARGEST = 160  # maximum height and width of the picture of an example


def analyze_mistakes(
    model: nn.Module,
    loader: Any,
    cam: MethodLike = "grad-cam",
    *,
    target_layers: TargetLayers | None = None,
    class_names: Any = None,
    scores: ScoreKind | None = None,
    batch: BatchOf | None = None,
    examples: int = 4,
) -> Mistakes:
    """Find the pairs of classes that a model confuses, with mean heatmaps and examples, from one explanation per batch.

    Each image is explained for its predicted class. For each pair of label and prediction, the result has the mean
    heatmap of the pair, and for comparison the mean heatmap of each of the two classes over its correctly predicted
    images. If the mean of the pair resembles that of the predicted class, something at these positions misled the
    model. If it resembles that of the label's class, the model looked at the object, but took it for one of the
    predicted class.

    Args:
        model: any classifier; it is not changed.
        loader: yields batches `(images, labels)`, where labels are class indices `(n,)`.
        cam: a method: its name in `METHODS`, its class, or an object with its own model and layers.
        target_layers: layers of the method; None = chosen automatically.
        class_names: names of the classes; None = `model.class_names`, or indices if the model carries no names.
        scores: kind of the scores: "softmax", "sigmoid" or "raw"; None = inferred from the model's configuration and
            outputs. For a model with one output, scores above 0.5 mean class 1.
        batch: function from an item of the loader to a pair `(images, labels)`.
        examples: maximum number of images to keep for each pair; the most confident mistakes are kept.

    Raises:
        UnknownNameError: a method that does not exist.
        InputError: an empty loader, a loader without labels, labels that are not class indices of the model, a
            baseline as `cam`, or `target_layers` for an object.
        ShapeError: different numbers of labels and images, or of outputs and images.
        OptionError: a negative number of examples, or an unknown kind of scores.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> mistakes = analyze_mistakes(model, [(torch.rand(6, 3, 16, 16), torch.arange(6) % 3)])
        >>> mistakes.n, int(mistakes.confusion.sum())
        (6, 6)
    """
    if scores is not None:
        one_of("scores", scores, SCORES)
    method = _method(model, cam, target_layers)
    inner = check_model(method.model)
    names = carried_names(inner) if class_names is None else read_class_names(class_names)
    found = _Found(whole("examples", examples))
    if found.most < 0:
        raise OptionError(f"examples is {examples}; expected at least 0")
    device, kind = device_of(inner), scores
    layers: tuple[str, ...] = ()
    with loaders_left_as_found(loader):
        for inputs, labels in pairs_of(loader, batch):
            inputs = moved(inputs, device)
            explanation = method.explain(inputs)
            logits = _logits(explanation, main_input(inputs))
            kind = kind or score_kind(inner, read_inputs(inputs, {}), explanation.output) or "softmax"
            own = _class_scores(logits, kind)
            found.add(explanation, own.cpu(), _labels(labels, own), main_input(inputs), inner)
            layers = explanation.layers
    kind = kind or "softmax"
    return Mistakes(
        tuple(found.pairs(names)), dict(found.counts), found.n, found.classes, names, type(inner).__name__,
        method.name or type(method).__name__, layers, WORDS[kind], are_probabilities(kind),
    )  # fmt: skip


def _method(model: nn.Module, cam: MethodLike, target_layers: TargetLayers | None) -> BaseCAM:
    [compared] = compared_methods(model, [cam], None, {})
    if compared.cam is None:
        raise InputError(
            f"{compared.method!r} is a baseline, which does not use the model; choose a method such as 'grad-cam'"
        )
    if target_layers is None:
        return compared.cam
    if isinstance(cam, BaseCAM):
        raise InputError(f"{type(cam).__name__} is an object with layers of its own; leave out target_layers")
    return type(compared.cam)(model, target_layers)


def _logits(explanation: Explanation, images: Tensor) -> Float[Tensor, "n classes"]:
    logits = read_logits(explanation.output).detach().float()
    if len(logits) != len(images):
        raise ShapeError(
            f"the model returns {len(logits)} rows of scores for {len(images)} images; expected one row for each image"
        )
    return logits


def _class_scores(logits: Float[Tensor, "n classes"], kind: ScoreKind) -> Float[Tensor, "n all"]:
    """Return the score of every class. A model with one output has two classes."""
    scores = class_scores(logits, "sigmoid" if kind == "softmax" and logits.shape[1] == 1 else kind)
    both: Tensor = torch.cat([1 - scores, scores], 1) if logits.shape[1] == 1 else scores
    return both


def _labels(labels: Any, scores: Float[Tensor, "n classes"]) -> Int[Tensor, " n"]:
    """Return labels as class indices, after checking that the model has these classes."""
    n, classes = scores.shape
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        found = (
            f"labels of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"labels as {kind_of(labels)}"
        )
        raise InputError(
            f"the loader gives {found}; expected class indices of shape ({n},). To convert one-hot labels, pass "
            "batch=lambda item: (item[0], item[1].argmax(1))"
        )
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise InputError("the labels are fractions; expected class indices, which are integers from 0")
    indices: Tensor = labels.detach().cpu().long()
    if n and (int(indices.min()) < 0 or int(indices.max()) >= classes):
        raise InputError(
            f"labels go from {int(indices.min())} to {int(indices.max())}, but the model has the classes 0 "
            f"to {classes - 1}; leave out images without a class, and subtract 1 from labels that start at 1"
        )
    return indices


@dataclass
class _Found:
    """Counts, sums of heatmaps and at most `most` examples of each pair of label and prediction."""

    most: int
    n: int = 0
    classes: int = 0
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    sums: dict[tuple[int, int], Float[np.ndarray, "h w"]] = field(default_factory=dict)
    surest: dict[tuple[int, int], list[MistakenImage]] = field(default_factory=dict)

    def add(
        self,
        explanation: Explanation,
        scores: Float[Tensor, "n classes"],
        labels: Int[Tensor, " n"],
        images: Tensor,
        model: nn.Module,
    ) -> None:
        """Add the images of a batch."""
        self.classes = scores.shape[1]
        predicted = scores.argmax(1).tolist()
        maps = flat_maps(explanation.heatmaps).float()
        small = _resized(maps, (SIDE, SIDE)).double().cpu().numpy()
        keys = list(zip(labels.tolist(), predicted, strict=True))
        for place, key in enumerate(keys):
            self.sums[key] = self.sums[key] + small[place] if key in self.sums else small[place]
            self.counts[key] += 1
            score = float(scores[place, key[1]])
            if key[0] != key[1] and self._is_kept(key, score):
                shape = _within(tuple(maps.shape[1:]), _FINEST)
                heatmap = _resized(maps[place : place + 1], shape)[0].clamp(0, 1).cpu().numpy()
                jpeg = _thumbnail(images[place : place + 1], model)
                example = MistakenImage(self.n + place, score, float(scores[place, key[0]]), heatmap, jpeg)
                kept = [*self.surest.get(key, ()), example]
                self.surest[key] = sorted(kept, key=lambda one: (-one.score, one.index))[: self.most]
        self.n += len(keys)

    def _is_kept(self, key: tuple[int, int], score: float) -> bool:
        kept = self.surest.get(key, [])
        return len(kept) < self.most or (self.most > 0 and score > kept[-1].score)

    def pairs(self, names: Sequence[str] | None) -> list[ConfusedPair]:
        """Return all pairs, the most frequent first."""
        totals: Counter[int] = Counter()
        for (label, _), count in self.counts.items():
            totals[label] += count

        def name(index: int) -> str:
            return names[index] if names is not None and index < len(names) else str(index)

        wrong = [key for key in self.counts if key[0] != key[1]]
        return [
            ConfusedPair(
                label, predicted, name(label), name(predicted), self.counts[label, predicted],
                self.counts[label, predicted] / totals[label], self._required(label, predicted),
                self._mean(label, label), self._mean(predicted, predicted),
                tuple(self.surest.get((label, predicted), ())),
            )
            for label, predicted in sorted(wrong, key=lambda key: (-self.counts[key], key))
        ]  # fmt: skip

    def _mean(self, label: int, predicted: int) -> Float[np.ndarray, "h w"] | None:
        return self._required(label, predicted) if (label, predicted) in self.sums else None

    def _required(self, label: int, predicted: int) -> Float[np.ndarray, "h w"]:
        mean: np.ndarray = (self.sums[label, predicted] / self.counts[label, predicted]).astype(np.float32)
        return mean


def _resized(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n y x"]:
    """Resize maps, by area averaging if no side grows, and by bilinear interpolation otherwise."""
    if maps.shape[1] >= size[0] and maps.shape[2] >= size[1]:
        return interpolate(maps[:, None], size, mode="area")[:, 0]
    return interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _within(shape: tuple[int, ...], most: int) -> tuple[int, int]:
    """Return a size with the aspect ratio of `shape` and sides of at most `most`."""
    height, width = shape
    scale = min(1.0, most / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thumbnail(image: Float[Tensor, "1 c *t"], model: nn.Module) -> bytes:
    """Return an image as a small JPEG, with the model's own normalization undone."""
    carried = getattr(model, "transform", None)
    transform = None if carried is None else as_transform(carried)
    known = (transform.mean, transform.std) if isinstance(transform, PictureTransform) else (None, None)
    shown = Image.fromarray(shown_pictures(image, *known)[0])
    shown.thumbnail((_LARGEST, _LARGEST))
    return encode_picture(shown, ".jpg")

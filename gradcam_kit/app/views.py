"""The output of a model for one picture: classes or boxes to explain, and the layers to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from gradcam_kit.app.uploads import PictureSource
from gradcam_kit.capture import (
    ClassLogit,
    Inputs,
    Runner,
    layer_candidates,
    read_inputs,
    resolve_target,
    score_kind,
    untouched,
)
from gradcam_kit.errors import GradCamKitError, InputError, TargetError, exits_refused
from gradcam_kit.jobs.request import ModelRequest
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.meter import Meter
from gradcam_kit.models import LoadedModel
from gradcam_kit.pixels.pictures import RGB
from gradcam_kit.targets import DetectionTarget
from gradcam_kit.targets.detections import are_queries, read_detections, read_queries
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import are_probabilities, class_scores
from gradcam_kit.transforms import Box
from gradcam_kit.types import LayerCandidate

SHOWN_SIDE = 768
"""Maximum size in pixels of the longer side of pictures on the page; the model gets the original picture."""

TOP, MOST_BOXES, LEAST_SCORE, FALLBACK = 5, 12, 0.3, 3
LEAST_SHARE = 0.01
"""Minimum probability of a class for a bar. The top class always gets one; other classes are only in the dropdown."""


@dataclass(frozen=True, eq=False)
class AppModel:
    """The model that the app explains.

    Attributes:
        request: the request from which the model was loaded.
        loaded: the loaded model with its transform and class names.
        model: the plain module on its device.
        device: the device of the model.
    """

    request: ModelRequest
    loaded: LoadedModel
    model: nn.Module
    device: torch.device

    @classmethod
    def load(cls, request: ModelRequest) -> AppModel:
        """Load the model of a request.

        Raises:
            GradCamKitError: the request is invalid.
        """
        explainer = load_explainer(request)
        return cls(request, explainer.loaded, explainer.model, explainer.device)

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its number."""
        names = self.loaded.class_names
        return names[index] if names is not None and index < len(names) else f"class {index}"


@dataclass(frozen=True, eq=False)
class NamedTarget:
    """A class or a box that can be explained.

    Attributes:
        name: name of the class.
        score: score of the class or of the detection; NaN for a class that is not among the top predictions.
        target: the target to pass to a method: the index of a class, or a `DetectionTarget` for a box.
        box: box of a detection, `(x0, y0, x1, y1)` in the pixels of `View.shown`; None for a class.
    """

    name: str
    score: float
    target: int | DetectionTarget
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class View:
    """What the model finds in a picture.

    Attributes:
        shown: the picture, with a longer side of at most `SHOWN_SIDE` pixels.
        seen: the part of `shown` that the model sees, `(x0, y0, x1, y1)`.
        source: the source of the picture as code.
        images: the model's input, a batch of one.
        targets: the top classes or boxes, best first.
        is_detector: whether `targets` are boxes.
        in_percent: whether the scores are probabilities.
        class_count: the number of classes of a classifier.
        layers: all layers with positions, in the order in which they ran.
        flops: number of floating-point operations in the forward pass.
        notes: messages for the user.
    """

    shown: UInt8[np.ndarray, "height width 3"]
    seen: Box
    source: PictureSource
    images: Float[Tensor, "1 c *t"]
    targets: tuple[NamedTarget, ...]
    is_detector: bool
    in_percent: bool
    class_count: int
    layers: tuple[LayerCandidate, ...]
    flops: int
    notes: tuple[str, ...] = ()

    def said(self, score: float) -> str:
        """Format a score for display."""
        return f"{score:.1%}" if self.in_percent else f"{score:.3g}"

    def bars(self) -> dict[str, int]:
        """Return a distinct label for each of `targets`, with its value in `target_choices`."""
        names = [one.name for one in self.targets]
        found = {}
        for place, one in enumerate(self.targets):
            value = place if self.is_detector else one.target
            alone = names.count(one.name) == 1
            label = f"{place + 1}. {one.name}" if self.is_detector else one.name if alone else f"{one.name} ({value})"
            found[label] = value if isinstance(value, int) else place
        return found

    def target_choices(self, model: AppModel) -> list[tuple[str, int]]:
        """Return labels and values of everything that can be explained: top predictions first, then other classes.

        The value is the index of the class or, for a detector, of the box.
        """
        if self.is_detector:
            return [(f"{i + 1}. {one.name}, {self.said(one.score)}", i) for i, one in enumerate(self.targets)]
        top = {one.target: f"{one.name}, {self.said(one.score)}" for one in self.targets}
        rest = [(model.class_name(i), i) for i in range(self.class_count) if i not in top]
        return [*((label, int(index)) for index, label in top.items() if isinstance(index, int)), *rest]

    def layer_choices(self) -> list[tuple[str, str]]:
        """Return labels and values of the layers that can be explained, the deepest first; "" = the method chooses."""
        usable = [one for one in self.layers if one.reached or one.hidden]
        listed = [(f"{one.name}  ({' x '.join(map(str, one.shape))})", one.name) for one in reversed(usable)]
        chosen = next((one.name for one in usable if one.chosen), "")
        return [(f"automatic ({chosen})" if chosen else "automatic", ""), *listed]

    def box_at(self, x: float, y: float) -> int | None:
        """Return the index of the smallest box around a point of `shown`, in pixels; None if no box contains it."""
        around = [
            ((box[2] - box[0]) * (box[3] - box[1]), place)
            for place, box in enumerate(one.box for one in self.targets)
            if box is not None and box[0] <= x <= box[2] and box[1] <= y <= box[3]
        ]
        return min(around)[1] if around else None


def look(model: AppModel, picture: RGB, source: PictureSource) -> View:
    """Run the model on a picture, and return what it finds, with the layers to choose from.

    Raises:
        InputError: the output holds neither class scores nor boxes.
        TargetError: the model is a detector and finds no box.
        Exception: any exception of the model's code.
    """
    with exits_refused():
        images = model.loaded.transform(picture)[None].to(model.device)
        inputs = read_inputs(images, {})
        with Meter(model.device) as meter, untouched(model.model, model.device), torch.no_grad():
            output = Runner.of(model.model, model.device)(inputs)
            flops = meter.lap().flops
        shown = _shown(picture)
        seen = _scaled(model.loaded.transform.box(*picture.shape[:2]), picture.shape, shown.shape)
        found = _detections(output)
        notes: list[str] = []
        if found is not None:
            # Boxes of query-based detectors are fractions of the image size; all other boxes are in pixels.
            size = (1, 1) if are_queries(output) else (images.shape[-2], images.shape[-1])
            targets = _boxes(model, found, seen, size, notes)
            in_percent, count = True, 0
        else:
            targets, in_percent, count = _classes(model, inputs, output)
        layers = _layers(model, inputs, targets[0].target if found is not None else None, notes)
    return View(shown, seen, source, images, targets, found is not None, in_percent, count, layers, flops, tuple(notes))


def layers_for(model: AppModel, view: View, target: int | DetectionTarget) -> tuple[LayerCandidate, ...]:
    """Return the layers with positions for one target; a box may decide which layers gradients reach."""
    if not view.is_detector:
        return view.layers
    resolved = resolve_target(target, ClassLogit)
    return tuple(layer_candidates(model.model, read_inputs(view.images, {}), resolved, ClassLogit))


def _shown(picture: RGB) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture with at most `SHOWN_SIDE` pixels on its longer side."""
    height, width = picture.shape[:2]
    factor = SHOWN_SIDE / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _scaled(box: Box, size: tuple[int, ...], shown: tuple[int, ...]) -> Box:
    """Convert a box from pixels of the original picture to pixels of the shown one; sizes are (height, width, ...)."""
    y, x = shown[0] / size[0], shown[1] / size[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _detections(output: Any) -> dict[str, Tensor] | None:
    """Return boxes, scores and labels of the image; None if the output is not that of a detector."""
    if are_queries(output):
        return dict(read_queries(output, None)[0])
    try:
        return dict(read_detections(output)[0])
    except TargetError:
        return None


def _boxes(
    model: AppModel, found: dict[str, Tensor], seen: Box, size: tuple[int, int], notes: list[str]
) -> tuple[NamedTarget, ...]:
    scores, boxes = found["scores"].float().cpu(), found["boxes"].float().cpu()
    labels = found["labels"].tolist() if "labels" in found else [None] * len(scores)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1).tolist()
    order = [place for place in scores.argsort(descending=True, stable=True).tolist() if has_area[place]]
    if not order:
        raise TargetError("the model finds no box in this picture; there is nothing to explain")
    chosen = [place for place in order if scores[place] > LEAST_SCORE][:MOST_BOXES]
    if not chosen:
        chosen = order[:FALLBACK]
        notes.append(f"no box scores above {LEAST_SCORE:.0%}; showing the best {len(chosen)}")
    x, y = (seen[2] - seen[0]) / size[1], (seen[3] - seen[1]) / size[0]
    targets = []
    for place in chosen:
        x0, y0, x1, y1 = boxes[place].tolist()
        name = "box" if labels[place] is None else model.class_name(labels[place])
        own = DetectionTarget(boxes[place], labels[place])
        where = (seen[0] + x0 * x, seen[1] + y0 * y, seen[0] + x1 * x, seen[1] + y1 * y)
        targets.append(NamedTarget(name, float(scores[place]), own, where))
    return tuple(targets)


def _classes(model: AppModel, inputs: Inputs, output: Any) -> tuple[tuple[NamedTarget, ...], bool, int]:
    try:
        logits = read_logits(output).detach()
    except GradCamKitError as error:
        raise InputError(f"the app explains classifiers and detectors: {error}") from error
    kind = score_kind(model.model, inputs, output)
    scores = class_scores(logits, kind)[0].cpu()
    best = scores.topk(min(TOP, len(scores)))
    in_percent = are_probabilities(kind)
    found = [
        NamedTarget(model.class_name(index), score, index)
        for place, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        if not in_percent or score >= LEAST_SHARE or place == 0
    ]
    return tuple(found), in_percent, len(scores)


def _layers(
    model: AppModel, inputs: Inputs, target: int | DetectionTarget | None, notes: list[str]
) -> tuple[LayerCandidate, ...]:
    try:
        resolved = None if target is None else resolve_target(target, ClassLogit)
        return tuple(layer_candidates(model.model, inputs, resolved, ClassLogit))
    except GradCamKitError as error:  # methods that need no layer still work
        notes.append(f"no layer can be chosen: {error}")
        return ()

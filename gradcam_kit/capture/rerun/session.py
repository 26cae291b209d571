"""Score changed images for metrics, with the class fixed once on the unchanged images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradcam_kit.capture.gradients.output_graph import score_kind
from gradcam_kit.capture.images.channels import read_inputs
from gradcam_kit.capture.model.inputs import Runner
from gradcam_kit.capture.model.memory_format import in_fastest_format
from gradcam_kit.capture.model.state import check_model, untouched
from gradcam_kit.capture.rerun.rescore import Rescorer, RowState
from gradcam_kit.capture.texts import with_texts
from gradcam_kit.options import positive_int
from gradcam_kit.targets.classes import ClassLogit, ClassProbability, ClassTarget, resolve_target, score, settle
from gradcam_kit.targets.names import carried_names
from gradcam_kit.targets.outputs import predicted_classes, read_logits
from gradcam_kit.targets.scores import ScoreKind
from gradcam_kit.types import Images, Rescore


@dataclass(frozen=True, eq=False)
class IsPrediction(ClassTarget):
    """The score 1 if a class is predicted, else 0. A single output predicts its class if it is above `threshold`.

    The score is NaN if a logit is NaN, because then no class is the largest.
    """

    threshold: float = 0.0

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return 1 for a class that is predicted (argmax z = c), else 0."""
        is_best = logits > self.threshold if logits.shape[1] == 1 else logits.argmax(1, keepdim=True) == classes
        return is_best.expand_as(classes).float().masked_fill(logits.isnan().any(1, keepdim=True), torch.nan)


@dataclass(frozen=True)
class Rescoring(Rescorer):
    """Computes the explained scores of changed images, and tells whether the images are still predicted as their class.

    Attributes:
        classes: the explained classes `(n, [m])`; None for a target without classes.
        settings: kind of the score and origin of the classes, stored with the results.
        scores: kind of the class scores, see `ClassProbability`.
    """

    classes: Tensor | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    scores: ScoreKind | None = None

    @property
    def predicts(self) -> Rescore | None:
        """The function that gives 1 for a changed image predicted as the class of its sample, else 0."""
        if self.classes is None:
            return None
        settings = {**self.settings, "score": "1 where the class is predicted"}
        threshold = 0.5 if self.scores == "raw" else 0.0  # a single output is a probability or a logit
        return replace(self, target=IsPrediction(self.classes, threshold), settings=settings)


@contextmanager
def rescoring(
    model: nn.Module,
    images: Images,
    targets: Any = None,
    *,
    probability: bool = True,
    image_input: int | str | None = None,
    scores: ScoreKind | None = None,
    batch_size: int = 64,
    keep_modes: bool = False,
    **forward_kwargs: Any,
) -> Iterator[Rescoring]:
    """Hold the model in eval mode, and yield `rescore(rows, index)`, which scores changed images.

    The scores have no graph. At the end of the block the model is restored, even after an error.

    Args:
        model: any PyTorch model.
        images: the images to change, in the form that methods accept.
        targets: the targets, in the form that methods accept. None = the predicted class of each image, found by one
            forward pass; the class stays the same for all changed images.
        probability: score classes by their probability; False = by the given target itself, or by the logit.
        image_input: position or key of the input to change, if there are several; None = the first floating-point input
            with 2 or 3 position axes, else with one.
        scores: kind of the probability: "softmax", "sigmoid" or "raw" (the unchanged outputs). None = detected: "raw"
            if the outputs already are probabilities, "sigmoid" if the model's configuration says multi-label or there
            is one output, else "softmax".
        batch_size: maximum number of rows in one forward pass; on a CPU fewer if that is faster.
        keep_modes: leave modules in train mode as they are, for dropout that is active on purpose; scores are then
            random.
        forward_kwargs: passed on to the model.
    """
    model = check_model(model)
    inputs = read_inputs(images, forward_kwargs, model, image_input=image_input)
    inputs, targets = with_texts(model, inputs, targets)
    positive_int("batch_size", batch_size)
    target = resolve_target(targets, ClassProbability if probability else ClassLogit, partial(carried_names, model))
    run = Runner.of(model, inputs.images.device)
    with untouched(model, inputs.images.device, keep_modes):
        inputs, output = in_fastest_format(model, inputs, lambda own: (own, run(own.with_images(own.images))))
        if target is None:
            target = (ClassProbability if probability else ClassLogit)(predicted_classes(output))
        classes, is_bag = None, False
        if isinstance(target, ClassTarget):
            target.check_samples(inputs.n, or_bag=True)
            logits = read_logits(output)
            is_bag = len(logits) == 1 < inputs.n
            classes = target.indices(logits)
            if probability and scores is None:
                scores = score_kind(model, inputs, output)
            target = ClassProbability(classes, scores) if probability else settle(target, output)
        else:
            target = settle(target, output)
            with torch.no_grad():
                is_bag = len(score(target, output, inputs.n)) == 1 < inputs.n
        name = type(target).__name__
        if probability and classes is not None and scores in ("sigmoid", "raw") and read_logits(output).shape[1] > 1:
            name = f"{name}, {scores}"
        settings = {"score": name, "classes": "predicted" if targets is None else "given"}
        state = RowState(is_bag=is_bag)
        yield Rescoring(
            run, inputs, target, output, batch_size, state, classes=classes, settings=settings, scores=scores
        )

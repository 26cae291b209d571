"""Scores of changed images for those who measure: the class is fixed once, on the images as they are."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradcam_kit.capture.model.inputs import Runner, read_inputs
from gradcam_kit.capture.model.memory_format import in_fastest_format
from gradcam_kit.capture.model.state import check_model, untouched
from gradcam_kit.capture.rerun.rescore import Rescorer
from gradcam_kit.options import positive_int
from gradcam_kit.targets.classes import (
    ClassLogit,
    ClassProbability,
    ClassTarget,
    are_shares,
    predicted_classes,
    read_logits,
    resolve_target,
    settle,
)
from gradcam_kit.types import Images, Rows

_log = logging.getLogger("gradcam_kit")


@dataclass(frozen=True, eq=False)
class IsPrediction(ClassTarget):
    """1 where a class is the predicted one, else 0; of a model with one output, where its logit is positive.

    NaN where a logit is NaN, of which no class is the largest.
    """

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """1[argmax z = c]."""
        is_best = logits > 0 if logits.shape[1] == 1 else logits.argmax(1, keepdim=True) == classes
        return is_best.expand_as(classes).float().masked_fill(logits.isnan().any(1, keepdim=True), torch.nan)


@dataclass(frozen=True)
class Rescoring(Rescorer):
    """`Rows` of the explained score, and whether changed images are still predicted as their class.

    Attributes:
        classes: what is explained `(n, [m])`; None for a target that has no classes.
        settings: what kind of score it is and where the classes come from; it travels with the numbers.
    """

    classes: Tensor | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def predicts(self) -> Rows | None:
        """Rows of 1 where a changed image is predicted as the explained class of its sample, else 0."""
        if self.classes is None:
            return None
        settings = {**self.settings, "score": "1 where the class is predicted"}
        return replace(self, target=IsPrediction(self.classes), settings=settings)


_looked_at: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _doubt(model: nn.Module, logits: Float[Tensor, "n classes"]) -> None:
    """Warn where outputs are probabilities already; a model is looked at once, because a device is waited for."""
    if model in _looked_at or logits.shape[1] == 1 or not len(logits):
        return
    _looked_at.add(model)
    if bool(are_shares(logits)):
        _log.warning(
            "the outputs of %s look like probabilities (from 0 to 1, and their sum is 1), and what is scored is their "
            "softmax; leave out the model's last softmax, or score the outputs: rescoring(..., probability=False)",
            type(model).__name__,
        )


@contextmanager
def rescoring(
    model: nn.Module,
    images: Images,
    targets: Any = None,
    *,
    probability: bool = True,
    batch_size: int = 64,
    **forward_kwargs: Any,
) -> Iterator[Rescoring]:
    """Hold the model in eval mode, and yield `rescore(rows, index)`: scores of changed images, without a graph.

    On leaving the block the model is as before, also after an error.

    Args:
        model: any PyTorch model.
        images: what is changed, as in calling a method.
        targets: as in calling a method. None = the predicted class of each image, found by one forward pass; it stays
            the same for all rows.
        probability: score classes by their softmax probability; False = by the target itself, or by the logit.
        batch_size: the most rows in one forward pass; on a CPU fewer where that is faster.
        forward_kwargs: passed on to the model.
    """
    model = check_model(model)
    inputs = read_inputs(images, forward_kwargs, model)
    positive_int("batch_size", batch_size)
    target = resolve_target(targets, ClassProbability if probability else ClassLogit)
    run = Runner.of(model, inputs.images.device)
    with untouched(model, inputs.images.device):
        inputs, output = in_fastest_format(model, inputs, lambda own: (own, run(own.with_images(own.images))))
        if target is None:
            target = (ClassProbability if probability else ClassLogit)(predicted_classes(output))
        classes = None
        if isinstance(target, ClassTarget):
            target.check_samples(inputs.n)
            logits = read_logits(output)
            classes = target.indices(logits)
            if probability:
                _doubt(model, logits)
            target = ClassProbability(classes) if probability else settle(target, output)
        else:
            target = settle(target, output)
        settings = {"score": type(target).__name__, "classes": "predicted" if targets is None else "given"}
        yield Rescoring(run, inputs, target, output, batch_size, classes=classes, settings=settings)

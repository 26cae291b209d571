"""The question of a comparison: the images, classes and scores that all methods and metrics share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from gradcam_kit.capture import ClassProbability, Inputs, Rescoring, check_model, rescoring, score_kind
from gradcam_kit.comparison.compared import ComparedMethod, call_of, explained
from gradcam_kit.errors import ShapeError, TargetError
from gradcam_kit.methods import Explanation
from gradcam_kit.metrics.rows import sample_index
from gradcam_kit.targets.scores import ScoreKind


@dataclass(frozen=True, eq=False)
class Question:
    """The common input of all methods and metrics of a comparison.

    Attributes:
        model: the model that scores changed images; a method on another model is scored by that model.
        inputs: the images, with the model's other inputs.
        targets: class indices `(n, [m])`, or a callable; None = the predicted classes.
        policy: origin of the classes as text; by default "predicted" or "given".
        scores: kind of the class scores, see `ClassProbability`; None = inferred from the output.
        kinds: model -> detected kind of its class scores; `scores` applies to all other models.
        masks: masks of the objects, `(n, *t)`, for metrics that need them.
        batch_size: maximum number of rows in one forward pass.
        seed: the seed of random draws.
        identities: a number for each image, from which the random draws for this image are derived; None =
            derived from the image's values.
        keep_modes: do not switch modules in train mode to eval mode.
    """

    model: nn.Module
    inputs: Inputs
    targets: Any = None
    policy: str = ""
    scores: ScoreKind | None = None
    kinds: Mapping[nn.Module, ScoreKind | None] = field(default_factory=dict)
    masks: Tensor | None = None
    batch_size: int = 64
    seed: int = 0
    identities: Tensor | None = None
    keep_modes: bool = False

    def __post_init__(self) -> None:
        if not self.policy:
            object.__setattr__(self, "policy", "predicted" if self.targets is None else "given")

    def rescoring(self, model: nn.Module, inputs: Inputs, targets: Any) -> AbstractContextManager[Rescoring]:
        """Return a context manager in which a model scores changed images for the targets."""
        images, keywords = call_of(inputs)
        return rescoring(
            model,
            images,
            targets,
            image_input=self.inputs.slot,
            scores=self.kinds.get(model, self.scores),
            batch_size=self.batch_size,
            keep_modes=self.keep_modes,
            **keywords,
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """The explanations of all methods, with the classes and scores that are explained.

    Attributes:
        question: the settled question, with the explained classes and the kind of their scores.
        explanations: label -> the explanation of a method.
        targets: class indices `(n, [m])`; None for a callable.
        scores: the scores of the targets, `(n, [m])`; None if unknown.
        other_scores: label -> the scores that a method's own model gives, for methods on another model.
    """

    question: Question
    explanations: Mapping[str, Explanation]
    targets: Tensor | None
    scores: Tensor | None
    other_scores: Mapping[str, Tensor]

    @property
    def per_image(self) -> int | None:
        """The number of targets of each image; None if scores have no axis of targets or are unknown."""
        return self.scores.shape[1] if self.scores is not None and self.scores.ndim == 2 else None


def answer(question: Question, found: Sequence[ComparedMethod]) -> Answer:
    """Explain the images with all methods, and settle the explained classes and the kind of their scores.

    Args:
        question: the question, whose model is already unwrapped.
        found: the compared methods.
    """
    model, inputs = question.model, question.inputs
    looking = {one.label: one.cam for one in found if one.cam is not None}
    others = {label for label, cam in looking.items() if check_model(cam.model) is not model}
    targets, by_model = question.targets, None
    if others and (targets is None or len(others) == len(looking)):
        # Ask `model` first, because all methods explain its predictions, and baselines are measured on it.
        targets, by_model = _asked(replace(question, scores=question.scores or score_kind(model, inputs)))
    explanations = explained(found, inputs, targets)
    kinds: dict[nn.Module, ScoreKind | None] = {}
    own: dict[str, Tensor | None] = {}
    for label, cam in looking.items():
        if cam.model not in kinds:
            kinds[cam.model] = question.scores or score_kind(cam.model, inputs, explanations[label].output)
        own[label] = _scores(explanations[label], kinds[cam.model])
    kind = kinds[model] if model in kinds else question.scores or score_kind(model, inputs)
    first = sorted(explanations, key=others.__contains__)  # prefer methods of the model itself
    classes = next((explanations[label].targets for label in first if explanations[label].targets is not None), None)
    scores = by_model if by_model is not None else next((own[one] for one in first if own[one] is not None), None)
    settled = replace(
        question,
        targets=targets if classes is None else classes,
        scores=kind,
        kinds={**{check_model(one): its for one, its in kinds.items()}, model: kind},
    )
    return Answer(
        settled,
        explanations,
        classes,
        scores,
        {label: one for label, one in own.items() if label in others and one is not None},
    )


def _asked(question: Question) -> tuple[Any, Tensor | None]:
    """Return the targets and the model's scores, which are None if the output holds no class scores."""
    inputs = question.inputs
    try:
        with question.rescoring(question.model, inputs, question.targets) as rescore:
            scores = rescore(inputs.images, sample_index(inputs.images))
            return rescore.classes if question.targets is None else question.targets, scores
    except (ShapeError, TargetError):
        return question.targets, None  # class-agnostic methods need no scores, and others raise their own error


def _scores(explanation: Explanation, kind: ScoreKind | None) -> Tensor | None:
    """Return the scores of the explained classes, of this kind, or the scores of a callable target."""
    if explanation.targets is not None:
        return ClassProbability(explanation.targets, kind)(explanation.output)
    return explanation.scores

"""The question of a comparison: which images, classes and scores all methods and metrics are asked about."""

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
    """What every method and every metric of a comparison is asked.

    Attributes:
        model: the model that sees the images again; a method of another model is scored by its own.
        inputs: the images, and what else the model gets with them.
        targets: class indices `(n, [m])`, or a callable; None = the predicted classes.
        policy: where the classes come from, in words; by default "predicted" or "given".
        scores: what the score of a class is, see `ClassProbability`; None = decided by evidence.
        kinds: what the scores of each model are, once that is decided; of others they are `scores`.
        masks: where the objects are, `(n, *t)`, for metrics that need them.
        batch_size: the most rows in one forward pass.
        seed: the seed of random draws.
        identities: a number per image, to which its draws belong; None = from the values of the image.
        keep_modes: leave modules that are in train mode in it.
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
    """What the methods found.

    Attributes:
        question: the question as it was settled: the classes that were explained, and what their scores are.
        explanations: label -> all that the pass of a method produced.
        targets: class indices `(n, [m])`; None for a callable.
        scores: the scores of the targets, `(n, [m])`; None where nothing is known.
        other_scores: label -> the scores by the method's own model, where it is another one.
    """

    question: Question
    explanations: Mapping[str, Explanation]
    targets: Tensor | None
    scores: Tensor | None
    other_scores: Mapping[str, Tensor]

    @property
    def per_image(self) -> int | None:
        """The number of targets of each image; None if there is no such axis."""
        return self.scores.shape[1] if self.scores is not None and self.scores.ndim == 2 else None


def answer(question: Question, found: Sequence[ComparedMethod]) -> Answer:
    """Explain the images by all methods, and settle which classes were explained and what their scores are.

    Args:
        question: what is asked; its model is the plain module.
        found: the compared methods.
    """
    model, inputs = question.model, question.inputs
    looking = {one.label: one.cam for one in found if one.cam is not None}
    others = {label for label, cam in looking.items() if check_model(cam.model) is not model}
    targets, by_model = question.targets, None
    if others and (targets is None or len(others) == len(looking)):
        # All explain what this model predicts, and baselines are about it.
        targets, by_model = _asked(replace(question, scores=question.scores or score_kind(model, inputs)))
    explanations = explained(found, inputs, targets)
    kinds: dict[nn.Module, ScoreKind | None] = {}
    own: dict[str, Tensor | None] = {}
    for label, cam in looking.items():
        if cam.model not in kinds:
            kinds[cam.model] = question.scores or score_kind(cam.model, inputs, explanations[label].output)
        own[label] = _scores(explanations[label], kinds[cam.model])
    kind = kinds[model] if model in kinds else question.scores or score_kind(model, inputs)
    first = sorted(explanations, key=others.__contains__)  # methods of the model itself before others
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
    """Return the targets and the model's scores; the scores are None where the output holds no class scores."""
    inputs = question.inputs
    try:
        with question.rescoring(question.model, inputs, question.targets) as rescore:
            scores = rescore(inputs.images, sample_index(inputs.images))
            return rescore.classes if question.targets is None else question.targets, scores
    except (ShapeError, TargetError):
        return question.targets, None  # methods that look at no class need none, and others say so themselves


def _scores(explanation: Explanation, kind: ScoreKind | None) -> Tensor | None:
    """Return the probabilities of classes, or the scores of a target that is a callable."""
    if explanation.targets is not None:
        return ClassProbability(explanation.targets, kind)(explanation.output)
    return explanation.scores

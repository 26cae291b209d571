"""Targets for classes: small immutable callables from the model's output to one score per sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import ClassIndexError, InputError, ShapeError, TargetError, kind_of
from gradcam_kit.functional import move
from gradcam_kit.targets.names import has_names, named_targets
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import ScoreKind, class_scores
from gradcam_kit.targets.values import ALL_CLASSES, Classes, read_classes, show
from gradcam_kit.types import Target

_T = TypeVar("_T", bound="ClassTarget")


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """Base of targets for classes.

    Args:
        classes: the class indices: an int for all samples, one per sample `(n,)`, or m per sample `(n, m)`.
    """

    classes: Classes
    named: ClassVar[int | None] = None
    """The number of the model's class names, if the classes were given by name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", read_classes(self.classes))

    __repr__ = show

    def __call__(self, output: Any) -> Float[Tensor, "n *targets"]:
        """Return scores `(n,)`, or `(n, m)` for `(n, m)` classes."""
        logits = read_logits(output)
        classes = self.indices(logits)
        scores = self.score(logits, classes.reshape(len(logits), -1))
        return scores.reshape(classes.shape)

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the scores of m classes for each sample."""
        raise NotImplementedError

    def select(self: _T, index: Int[Tensor, " m"]) -> _T:
        """Return the target for rows that belong to samples `index`."""
        if not isinstance(self.classes, Tensor):
            return self
        return replace(self, classes=move(self.classes, index.device)[index])

    def on_host(self: _T) -> _T:
        """Return the target with its class indices on the host, where they are checked."""
        held = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        moved = {
            name: value.cpu()
            for name, value in held.items()
            if isinstance(value, Tensor) and not value.is_floating_point() and value.device.type != "cpu"
        }
        return replace(self, **moved) if moved else self

    def check_samples(self, n: int, *, or_bag: bool = False) -> None:
        """Raise ShapeError unless the targets match the number of samples.

        Args:
            n: number of samples.
            or_bag: accept a single target, because only the model's output shows whether the samples are one bag.
        """
        if or_bag and isinstance(self.classes, Tensor) and self.classes.shape[0] == 1:
            return
        if isinstance(self.classes, Tensor) and self.classes.shape[0] != n:
            raise ShapeError(f"{self.classes.shape[0]} targets for {n} images; give one per image, or an int for all")

    def indices(self, logits: Float[Tensor, "n classes"]) -> Int[Tensor, "n *targets"]:
        """Return the class indices as a tensor, checked against the model's output.

        Raises:
            ShapeError: the numbers of targets and samples differ.
            ClassIndexError: the model does not have one of the classes.
            TargetError: the classes are one-hot or multi-hot labels, which would be read as indices, or they were given
                by name and the model has more or fewer names than outputs.
        """
        n, count = logits.shape
        if self.named is not None and self.named != count:
            raise TargetError(
                f"the model carries {self.named} class names but has {count} outputs, so names cannot be "
                "matched to classes; give one name for each output, or pass indices"
            )
        if not isinstance(self.classes, Tensor):
            _check_range(self.classes, self.classes, count)
            return torch.full((n,), self.classes, device=logits.device)
        self.check_samples(n)
        # Users pass indices on the host; indices on other devices are predictions, which are in range.
        if self.classes.device.type == "cpu" and self.classes.numel():
            _check_range(int(self.classes.min()), int(self.classes.max()), count)
            _check_not_labels(self.classes, count)
        return move(self.classes, logits.device, torch.long)


def _check_range(low: int, high: int, count: int) -> None:
    if low >= 0 and high < count:
        return
    hint = f"classes go from 0 to {count - 1}"
    if count == 1:
        hint = "to explain the negative class pass targets=Negative(0)"
    raise ClassIndexError(f"class {low if low < 0 else high} for a model with {count} output(s); {hint}")


def _check_not_labels(classes: Tensor, count: int) -> None:
    """Raise TargetError for one-hot or multi-hot labels, which would be read as indices 0 and 1."""
    if classes.ndim != 2 or classes.shape[1] != count or count < 2 or not bool((classes <= 1).all()):
        return
    single = bool((classes.sum(1) == 1).all())
    if single and count == 2:
        return  # a valid request: both classes, in this order
    kind, instead = ("one-hot", "targets.argmax(1)") if single else ("multi-hot", ALL_CLASSES.format(count=count))
    raise TargetError(
        f"targets (n, {count}) for a model with {count} classes are {kind}, but (n, m) stands for m class indices "
        f"of each sample; pass {instead}"
    )


class ClassLogit(ClassTarget):
    """The logit of a class, which is the default score.

    Gradients of probabilities vanish when the model is certain, but gradients of logits do not.
    """

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the logits z_c."""
        return logits.gather(1, classes)


@dataclass(frozen=True, eq=False)
class ClassProbability(ClassTarget):
    """The probability of a class, in at least float32: the softmax, or the sigmoid for a model with one output.

    Args:
        classes: the class indices, as for every class target.
        scores: "softmax", "sigmoid" (for multi-label models), or "raw" for outputs that already are probabilities; None
            = sigmoid for a model with one output, else softmax.
    """

    scores: ScoreKind | None = None

    __repr__ = show

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the probabilities p_c, in [0, 1]."""
        return class_scores(logits, self.scores).gather(1, classes)


@dataclass(frozen=True, eq=False)
class EvidentProbability(ClassTarget):
    """The probability of a class, with its kind detected when a score is first needed.

    Args:
        classes: the class indices, as for every class target.
        kind: function that returns the kind of the probability, see `ClassProbability`.
    """

    kind: Callable[[], ScoreKind | None] = lambda: None

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the probabilities p_c, or the unchanged outputs of the classes if the kind is "raw"."""
        return class_scores(logits, self.kind()).gather(1, classes)


TargetType = Callable[[Tensor], ClassTarget]
"""A type that makes a method's target from plain class indices, usually `ClassLogit`."""


def resolve_target(
    targets: Any, target_type: Callable[[Any], ClassTarget], names: Callable[[], Sequence[str] | None] = lambda: None
) -> Target | None:
    """Turn the user's `targets` into a target, or return None for the class that the forward pass will predict.

    Args:
        targets: the user's targets.
        target_type: type of the target that is made from plain class indices.
        names: function that returns the model's class names; called only for targets that are names.

    Raises:
        InputError: the targets are neither classes nor callable.
        UnknownNameError: a name belongs to no class, or to several classes.
    """
    if has_names(targets) and (known := names()) is not None:
        target = target_type(named_targets(targets, known))
        object.__setattr__(target, "named", len(known))
        return target
    if isinstance(targets, ClassTarget):
        return targets.on_host()
    if targets is None or callable(targets):
        given: Target | None = targets
        return given
    # Check classes on the host, where a wrong class raises an error instead of a device-side assertion.
    return target_type(targets.cpu() if isinstance(targets, Tensor) else targets)


def settle(target: Target, output: Any) -> Target:
    """Fix the choices that a target takes from a prediction (classes, region), so that they hold for changed images."""
    settled: Target = target.settle(output) if hasattr(target, "settle") else target
    return settled


def score(target: Target, output: Any, n: int) -> Float[Tensor, "n *targets"]:
    """Call a target and check its result: one score per sample, or `(1, *targets)` for a bag of samples.

    A model that returns one row for several samples scores them together, as in multiple instance learning.

    Raises:
        InputError: the target does not return a tensor.
        ShapeError: the target does not return one score per sample; the message has both shapes.
        TargetError: the output has a graph, but the scores are cut off from it.
    """
    scores = target(output)
    if not isinstance(scores, Tensor):
        raise InputError(f"the target returned {kind_of(scores)}; expected a tensor of scores ({n},)")
    classes = getattr(target, "classes", None)
    expected = (n, *classes.shape[1:]) if isinstance(classes, Tensor) else (n,)
    if n > 1 and _has_single_row(output):
        scores = _of_the_bag(scores, expected)
        expected = (len(scores), *expected[1:]) if scores.ndim and len(scores) == 1 else expected
    if tuple(scores.shape) != expected:
        raise ShapeError(
            f"the target returned scores of shape {tuple(scores.shape)}; expected {expected}: one score per sample"
        )
    if not scores.requires_grad and _has_graph(output):
        raise TargetError(
            "the target returned scores without a graph, so they have no gradients; compute them from the model's "
            "output by differentiable operations: no detach(), no_grad, item(), numpy() or argmax in between"
        )
    return scores


def _has_single_row(output: Any) -> bool:
    """Whether a tensor in an output has a single row for all samples."""
    floating = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return any(leaf.ndim > 0 and leaf.shape[0] == 1 for leaf in floating)


def _of_the_bag(scores: Tensor, expected: tuple[int, ...]) -> Tensor:
    """Return the score of a bag once, even if a target repeats it, so that its gradient is not added several times."""
    if scores.ndim == 0:
        return scores[None]
    is_repeated = tuple(scores.shape) == expected and scores.stride(0) == 0
    return scores[:1] if is_repeated else scores


def _has_graph(output: Any) -> bool:
    """Whether all floating-point tensors of an output have a graph."""
    floating = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return bool(floating) and all(leaf.requires_grad for leaf in floating)

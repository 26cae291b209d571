"""Targets that compare the logits of several classes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, ShapeError, TargetError, kind_of
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.options import positive_int
from gradcam_kit.targets.classes import ClassLogit, ClassTarget, resolve_target, settle
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.values import Classes, changed, read_classes, show

Weighting = Literal["softmax", "mean"]


@dataclass(frozen=True, eq=False)
class LogitDifference(ClassTarget):
    """The difference of two logits, z_c - z_r, which explains why the model prefers class c to class r.

    The target follows DiffGradCAM (Piland et al. 2025, arXiv 2506.08514).

    Args:
        classes: the class c to explain.
        against: the class(es) r to compare with: an int, `(n,)`, or shaped like `classes`; None = the mean logit of all
            other classes.

    Raises:
        TargetError: a class is compared with itself, or the model has a single output.
        ShapeError: `against` does not have one class for each of `classes`.
    """

    against: Classes | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is None:
            return
        object.__setattr__(self, "against", read_classes(self.against))
        if not _fits(self.against, self.classes):
            raise ShapeError(
                f"against has shape {tuple(self.against.shape)} for classes of shape "
                f"{tuple(getattr(self.classes, 'shape', ()))}; expected the same shape, or one class for all"
            )
        if _share_a_class(self.classes, self.against):
            raise TargetError(f"{self!r} compares a class with itself; give another class as against=")

    __repr__ = show

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the differences z_c - z_r, in logit units."""
        chosen = logits.gather(1, classes)
        if self.against is not None:
            references = ClassLogit(self.against).indices(logits).reshape(len(logits), -1)
            return chosen - logits.gather(1, references.expand_as(classes))
        if logits.shape[1] == 1:
            raise TargetError("the model has one output, so there is no other class to compare with; use ClassLogit")
        return chosen - (logits.sum(1, keepdim=True) - chosen) / (logits.shape[1] - 1)

    def select(self, index: Int[Tensor, " m"]) -> LogitDifference:
        """Return the target for rows that belong to samples `index`."""
        chosen = {
            name: move(classes, index.device)[index]
            for name, classes in (("classes", self.classes), ("against", self.against))
            if isinstance(classes, Tensor)
        }
        return replace(self, **chosen)


def _fits(against: int | Tensor, classes: int | Tensor) -> bool:
    """Whether there is one class to compare with for each explained class."""
    if not isinstance(against, Tensor) or against.ndim == 1:
        return True
    return isinstance(classes, Tensor) and classes.ndim == 2 and against.shape[1] == classes.shape[1]


def _share_a_class(classes: int | Tensor, against: int | Tensor) -> bool:
    """Whether a class is compared with itself. Classes on GPUs are not checked, because this would synchronize."""
    tensors = [given for given in (classes, against) if isinstance(given, Tensor)]
    if any(given.device.type != "cpu" for given in tensors):
        return False
    if len(tensors) == 2 and len(tensors[0]) != len(tensors[1]):
        return False  # an error is raised later, when the number of samples is known
    first, second = (
        given.reshape(len(given), -1) if isinstance(given, Tensor) else given for given in (classes, against)
    )
    return bool(torch.as_tensor(first == second).any())


@dataclass(frozen=True, eq=False)
class FinerTarget(ClassTarget):
    r"""A class against the most similar classes: Finer-CAM (Zhang et al., CVPR 2025, arXiv 2501.11309).

    The references d are the other classes whose logits are nearest to z_c (on ties, the classes with lower indices),
    chosen on the unchanged images. With "softmax" weighting, the score is
    $\frac{\sum_d p_d (z_c - \alpha z_d)}{\sum_d p_d}$ with softmax probabilities p, which are differentiated too, as in
    the released code. With "mean" weighting, it is $z_c - \gamma \frac{1}{|d|} \sum_d z_d$.

    Args:
        classes: the class to explain.
        references: number of classes to compare with; all others if the model has fewer. A model with one output has no
            other logits, so the score is its logit.
        weighting: "softmax" or "mean".
        alpha: strength of the comparison for "softmax"; 0 = the logit.
        gamma: strength of the comparison for "mean".
        nearest: the references of each explained class; filled in by `settle`.

    Raises:
        OptionError: the weighting is unknown, or `references` is not a positive int.
    """

    references: int = 3
    weighting: Weighting = "softmax"
    alpha: float = 1.0
    gamma: float = 0.6
    nearest: Int[Tensor, "n m r"] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in get_args(Weighting):
            raise OptionError(f"weighting is {self.weighting!r}; expected 'softmax' or 'mean'")
        positive_int("references", self.references)

    __repr__ = show

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return the comparison with the nearest classes, in logit units."""
        logits = at_least_float32(logits)
        chosen = logits.gather(1, classes)
        nearest = self._nearest(logits, classes) if self.nearest is None else self.nearest
        if nearest.shape[2] == 0:
            return chosen
        others = logits[:, None].expand(-1, classes.shape[1], -1).gather(2, nearest)
        if self.weighting == "mean":
            return chosen - self.gamma * others.mean(2)
        # p_d / sum_d p_d is the softmax over the references alone.
        return chosen - self.alpha * (others.softmax(2) * others).sum(2)

    def settle(self, output: Any) -> FinerTarget:
        """Return the target with the classes that are nearest in this output."""
        logits = read_logits(output)
        return replace(
            self, nearest=self._nearest(at_least_float32(logits), self.indices(logits).reshape(len(logits), -1))
        )

    def select(self, index: Int[Tensor, " m"]) -> FinerTarget:
        """Return the target for rows that belong to samples `index`."""
        selected = super().select(index)
        return selected if self.nearest is None else replace(selected, nearest=self.nearest[index])

    def _nearest(self, logits: Tensor, classes: Tensor) -> Int[Tensor, "n m r"]:
        distances = (logits.detach()[:, None] - logits.detach().gather(1, classes)[..., None]).abs()
        distances = distances.scatter(2, classes[..., None], torch.inf)
        return distances.argsort(dim=2, stable=True)[..., : min(self.references, logits.shape[1] - 1)]


@dataclass(frozen=True, eq=False)
class TopK:
    """The sum of the k largest logits of each sample, or of all logits if the model has fewer.

    The classes are chosen on the unchanged images, not again for each changed image.

    Args:
        k: number of classes.
        largest: the chosen classes of each sample; filled in by `settle`.

    Raises:
        OptionError: k is not a positive int.
    """

    k: int
    largest: Int[Tensor, "n k"] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        positive_int("k", self.k)

    __repr__ = show

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return scores in logit units."""
        logits = read_logits(output)
        largest = self._largest(logits) if self.largest is None else self.largest
        return at_least_float32(logits).gather(1, largest).sum(1)

    def settle(self, output: Any) -> TopK:
        """Return the target with the classes that are largest in this output."""
        return replace(self, largest=self._largest(read_logits(output)))

    def select(self, index: Int[Tensor, " m"]) -> TopK:
        """Return the target for rows that belong to samples `index`."""
        return self if self.largest is None else replace(self, largest=self.largest[index])

    def _largest(self, logits: Tensor) -> Int[Tensor, "n k"]:
        return logits.detach().topk(min(self.k, logits.shape[1]), dim=1).indices


@dataclass(frozen=True, eq=False)
class Negative:
    """The evidence against a target: its score with the opposite sign.

    For a binary or regression model with one output, `Negative(0)` explains the negative class, or a lower value. For
    other models it gives the counterfactual explanation of Grad-CAM (Selvaraju et al., ICCV 2017, Section 3.3).

    Args:
        target: a target, or classes (an int, `(n,)` or `(n, m)`), whose logits are negated.

    Raises:
        InputError: the target is a callable without `select`; negate its result in a function of your own instead.
    """

    target: Any

    def __post_init__(self) -> None:
        target = resolve_target(self.target, ClassLogit)
        if not hasattr(target, "select"):
            raise InputError(
                f"Negative got {kind_of(self.target)}; expected classes or a target with select. "
                "For another callable pass targets=lambda output: -function(output)"
            )
        object.__setattr__(self, "target", target)

    __repr__ = show

    @property
    def classes(self) -> Any:
        """The classes of the target, if any, which determine the number of scores per sample."""
        return getattr(self.target, "classes", None)

    def __call__(self, output: Any) -> Float[Tensor, "n *targets"]:
        """Return the negated scores of the target."""
        scores: Tensor = -self.target(output)
        return scores

    def settle(self, output: Any) -> Negative:
        """Return the negative of the settled target."""
        return changed(self, target=settle(self.target, output))

    def select(self, index: Int[Tensor, " m"]) -> Negative:
        """Return the target for rows that belong to samples `index`."""
        return changed(self, target=self.target.select(index))

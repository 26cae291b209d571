"""Targets: small immutable callables from the model's output to one score per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from operator import index as as_index
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import ClassIndexError, InputError, ShapeError, TargetError
from gradcam_kit.functional import widen
from gradcam_kit.types import Target

Classes = Any
"""An int (also NumPy's), or one or m of them for each sample: a sequence, an array or a tensor."""
_T = TypeVar("_T", bound="ClassTarget")


def read_logits(output: Any) -> Float[Tensor, "n classes"]:
    """Find the class scores in a model's output.

    A tensor is taken as it is; a mapping or a Hugging Face output by its `logits`, else its only floating tensor; a
    tuple by its only floating tensor. One value per sample `(n,)` counts as one class.

    Raises:
        TargetError: none or several tensors could be meant; the message says what was found.
        ShapeError: the scores are not `(n, classes)`.
    """
    found = find_logits(output)
    if found.ndim < 2:
        return found.reshape(-1, 1)  # without any axis it is one sample, squeezed
    if found.ndim != 2:
        raise ShapeError(
            f"the model's output has shape {tuple(found.shape)}; class targets need (n, classes). "
            "For dense predictions pass targets=SegmentationTarget(...) or a callable output -> scores (n,)"
        )
    return found


def find_logits(output: Any) -> Tensor:
    """The tensor of a model's output that `read_logits` reads, as it is."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    floating = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(floating) == 1:
        return floating[0]
    found = ", ".join(str(tuple(tensor.shape)) for tensor in floating) or "none"
    raise TargetError(
        f"the model's output is a {type(output).__name__} with {len(floating)} floating tensors ({found}); "
        "class targets need one. Pass targets=callable, which gets the output as it is and returns scores (n,), "
        "such as those of gradcam_kit.targets"
    )


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """Base of the targets that belong to classes.

    Args:
        classes: an int for all samples, one per sample `(n,)`, or m per sample `(n, m)`.
    """

    classes: Classes

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", read_classes(self.classes))

    def __call__(self, output: Any) -> Float[Tensor, "n *targets"]:
        """Scores `(n,)`, or `(n, m)` for `(n, m)` classes."""
        logits = read_logits(output)
        classes = self.indices(logits)
        scores = self.score(logits, classes.reshape(len(logits), -1))
        return scores.reshape(classes.shape)

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Scores of m classes for each sample."""
        raise NotImplementedError

    def select(self: _T, index: Int[Tensor, " m"]) -> _T:
        """The target of the rows that belong to samples `index`."""
        if not isinstance(self.classes, Tensor):
            return self
        return replace(self, classes=self.classes.to(index.device)[index])

    def on_host(self: _T) -> _T:
        """The same target with its class indices on the host, where they are checked."""
        held = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        moved = {
            name: value.cpu()
            for name, value in held.items()
            if isinstance(value, Tensor) and not value.is_floating_point() and value.device.type != "cpu"
        }
        return replace(self, **moved) if moved else self

    def check_samples(self, n: int) -> None:
        """Raise ShapeError if there are targets for another number of samples."""
        if isinstance(self.classes, Tensor) and self.classes.shape[0] != n:
            raise ShapeError(f"{self.classes.shape[0]} targets for {n} images; give one per image, or an int for all")

    def indices(self, logits: Float[Tensor, "n classes"]) -> Int[Tensor, "n *targets"]:
        """The class indices as a tensor, checked against the model's output.

        Raises:
            ShapeError: another number of targets than samples.
            ClassIndexError: a class that the model does not have.
        """
        n, count = logits.shape
        if not isinstance(self.classes, Tensor):
            _check_range(self.classes, self.classes, count)
            return torch.full((n,), self.classes, device=logits.device)
        self.check_samples(n)
        # What a user passes lies on the host; what lies elsewhere are predictions, which are in range.
        if self.classes.device.type == "cpu" and self.classes.numel():
            _check_range(int(self.classes.min()), int(self.classes.max()), count)
        return self.classes.to(logits.device, torch.long, non_blocking=True)


def _check_range(low: int, high: int, count: int) -> None:
    if low >= 0 and high < count:
        return
    hint = f"classes go from 0 to {count - 1}"
    if count == 1:
        hint = "to explain the negative class pass targets=Negative(0)"
    raise ClassIndexError(f"class {low if low < 0 else high} for a model with {count} output(s); {hint}")


class ClassLogit(ClassTarget):
    """The logit of a class: the default. Probabilities vanish when the model is sure; logits do not."""

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """z_c."""
        return logits.gather(1, classes)


class ClassProbability(ClassTarget):
    """The softmax probability of a class, in float32; for a model with one output the sigmoid of it."""

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """p_c in [0, 1]."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)).gather(1, classes)


def predicted_classes(output: Any) -> Int[Tensor, " n"]:
    """The class with the largest logit, for each sample; 0 for a model with one output."""
    return read_logits(output).argmax(dim=1)


TargetType = Callable[[Tensor], ClassTarget]
"""How a method scores plain class indices: most by `ClassLogit`."""


def resolve_target(targets: Any, target_type: Callable[[Any], ClassTarget]) -> Target | None:
    """Turn what the user passed into a target; None stays None (the predicted class, known after the forward pass).

    Raises:
        InputError: what is neither classes nor callable.
    """
    if isinstance(targets, ClassTarget):
        return targets.on_host()
    if targets is None or callable(targets):
        given: Target | None = targets
        return given
    # Classes are checked on the host, so that a wrong one is an error there and no fault of the device.
    return target_type(targets.cpu() if isinstance(targets, Tensor) else targets)


def settle(target: Target, output: Any) -> Target:
    """Fix what a target takes from the prediction (its classes, its region), so that changed rows are scored alike."""
    settled: Target = target.settle(output) if hasattr(target, "settle") else target
    return settled


def score(target: Target, output: Any, n: int) -> Float[Tensor, "n *targets"]:
    """Call a target and check what it returns.

    Raises:
        ShapeError: not one score per sample; the message has both shapes.
    """
    scores = target(output)
    if not isinstance(scores, Tensor):
        raise InputError(f"the target returned a {type(scores).__name__}; expected a tensor of scores ({n},)")
    classes = getattr(target, "classes", None)
    expected = (n, *classes.shape[1:]) if isinstance(classes, Tensor) else (n,)
    if tuple(scores.shape) != expected:
        raise ShapeError(
            f"the target returned scores of shape {tuple(scores.shape)}; expected {expected}: one score per sample"
        )
    return scores


def read_classes(classes: Any) -> int | Tensor:
    """An int for all samples, or a copy of class indices `(n,)` or `(n, m)`, whatever holds them."""
    if getattr(classes, "ndim", 0) == 0 and getattr(classes, "dtype", type(classes)) not in (bool, torch.bool):
        try:
            return as_index(classes)  # also NumPy integers and 0-d integer tensors
        except TypeError:
            pass
    try:
        found = classes if isinstance(classes, Tensor) else torch.as_tensor(np.asarray(classes), device="cpu")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"targets is a {type(classes).__name__}; expected None, an int, class indices (n,) or (n, m), or a callable"
        ) from error
    found = found if found.numel() else found.long()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise InputError(f"targets are {found.dtype}; expected integer class indices")
    if found.ndim not in (1, 2) or found.shape[-1] == 0 < found.ndim - 1:
        raise ShapeError(f"targets have shape {tuple(found.shape)}; expected (n,) or (n, m) with m of at least 1")
    return _own(found)


def read_numbers(name: str, value: Any) -> Float[Tensor, "..."]:
    """A copy of finite numbers, whatever holds them, in at least float32.

    Raises:
        InputError: something else; the message has `name`.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is a {type(value).__name__}; expected an array of numbers") from error
    if found.is_complex() or not torch.isfinite(found).all():
        raise InputError(f"{name} has complex, NaN or infinite values; expected finite numbers")
    return widen(_own(found))


def _own(tensor: Tensor) -> Tensor:
    """A copy that nobody else changes; what is made under inference mode cannot enter a graph."""
    with torch.inference_mode(False):
        return tensor.detach().clone()

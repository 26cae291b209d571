"""The kind of a class score: softmax or sigmoid of the outputs, or the unchanged outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ScoreKind = Literal["softmax", "sigmoid", "raw"]

SCORES: tuple[str, ...] = get_args(ScoreKind)

_ROUNDING = 0.01  # tolerance of the sum of a softmax in half precision
_VALUES = 8  # minimum number of outputs between 0 and 1; fewer could be logits by chance
_MOVES = {
    *("alias", "cat", "clone", "contiguous", "expand", "flatten", "index", "indexselect", "permute", "reshapealias"),
    *("select", "slice", "split", "squeeze", "stack", "t", "tocopy", "transpose", "unbind", "unsqueeze", "unsafeview"),
    "view",
}
"""Operations of a graph that only move values."""
_LINEAR = {"add", "addmm", "bmm", "convolution", "mm"}
"""Operations whose results look like probabilities only by chance."""
_SEARCHED = 100  # maximum number of operations that are searched


def class_scores(logits: Float[Tensor, "n classes"], kind: ScoreKind | None = None) -> Float[Tensor, "n classes"]:
    """Return class scores in at least float32. A `kind` of None means sigmoid for a single output, else softmax."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    match kind or ("sigmoid" if logits.shape[1] == 1 else "softmax"):
        case "softmax":
            return logits.softmax(1)
        case "sigmoid":
            return logits.sigmoid()
    return logits


WORDS: dict[str, str] = {
    "softmax": "the softmax of the outputs",
    "sigmoid": "the sigmoid of the output of the class",
    "raw": "the output of the class as it is",
}
"""Description of each kind of score."""


def are_probabilities(kind: ScoreKind | None) -> bool:
    """Whether scores of this kind are between 0 and 1 by construction, so that they may be shown in percent."""
    return kind != "raw"


def are_shares(logits: Float[Tensor, "n classes"]) -> Bool[Tensor, ""]:
    """Whether scores already look like a softmax: no score is negative, and each sample's sum is 1."""
    values = logits.float()
    return ((values.amin(1) >= 0) & ((values.sum(1) - 1).abs() < _ROUNDING)).all()


def evident_kind(model: object, outputs: Sequence[Float[Tensor, "_ classes"]]) -> tuple[ScoreKind, str]:
    """Return the kind of a model's scores, and the reason as text.

    The kind is decided by the first of these facts that is known: the problem type in the model's configuration, the
    last operation if outputs have a graph, and values that all lie between 0 and 1. Otherwise the outputs are logits.

    Args:
        model: the model, whose configuration is read.
        outputs: class scores of some images, in one or more tensors. Only the first tensor needs an autograd graph.
    """
    if (told := told_kind(model, outputs[0])) is not None:
        return told
    values = torch.cat([output.detach().flatten().float() for output in outputs])
    single = outputs[0].shape[1] == 1
    if len(values) and bool(((values >= 0) & (values <= 1)).all()):
        if not single and all(bool(are_shares(output.detach())) for output in outputs):
            return "raw", "the outputs are between 0 and 1, and their sum is 1"
        if len(values) >= _VALUES:
            return "raw", "the outputs are between 0 and 1"
    return _of_logits(outputs[0])


def told_kind(model: object, output: Float[Tensor, "_ classes"]) -> tuple[ScoreKind, str] | None:
    """Return the result of `evident_kind` if it follows without reading values, which would synchronize; else None."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "multi_label_classification":
        return "sigmoid", "the model's configuration says multi-label"
    if problem == "regression":
        return "raw", "the model's configuration says regression"
    last = last_operation(output)
    if last in ("softmax", "sigmoid", "logsigmoid"):
        return "raw", f"the last operation of the model is a {last}"
    if last == "logsoftmax":
        return "softmax", "the outputs are logarithms of probabilities"
    return _of_logits(output) if last in _LINEAR else None


def _of_logits(output: Tensor) -> tuple[ScoreKind, str]:
    return ("sigmoid", "the model has one output") if output.shape[1] == 1 else ("softmax", "the outputs are logits")


def last_operation(output: Tensor) -> str | None:
    """Return the operation that computed an output ("sigmoid", ...); None without a graph or for several operations."""
    found: set[str | None] = set()
    waiting: list[Any] = [output.grad_fn]
    for _ in range(_SEARCHED):
        if not waiting:
            break
        node = waiting.pop()
        name = None if node is None else node.name().partition("Backward")[0].lower()
        if name in _MOVES:
            waiting += [following for following, _ in node.next_functions]
        else:
            found.add(name)
    return found.pop() if len(found) == 1 and not waiting else None

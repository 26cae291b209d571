"""Run backward passes from scores to captured tensors or images, without gradients of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.balance.backward import following, shared_passes
from gradcam_kit.capture.recording import LayerRecord, Recorder
from gradcam_kit.errors import CaptureError, InputError
from gradcam_kit.types import GradientRule


def differentiate(scores: Tensor, tensors: Sequence[Tensor], *, keep: bool = False) -> list[list[Tensor | None]]:
    """Return d score / d tensor for each target and tensor, or None where the score does not depend on the tensor.

    Args:
        scores: `(n,)` or `(n, m)`. Each target costs one backward pass of the sum over samples, because samples do not
            mix in eval mode.
        tensors: leaves or intermediate results of the graph.
        keep: keep the graph for further passes.
    """
    columns = scores.reshape(scores.shape[0], -1).sum(0)
    if not scores.requires_grad:
        return [[None for _ in tensors] for _ in columns]
    take = _accumulate if any(node.name() == "CheckpointFunctionBackward" for node in nodes(scores)) else _grad
    return [take(column, tensors, keep or j < len(columns) - 1) for j, column in enumerate(columns)]


def _grad(column: Tensor, tensors: Sequence[Tensor], retain: bool) -> list[Tensor | None]:
    return list(torch.autograd.grad(column, tensors, retain_graph=retain, allow_unused=True))


def _accumulate(column: Tensor, tensors: Sequence[Tensor], retain: bool) -> list[Tensor | None]:
    # Reentrant checkpoints do not support `autograd.grad`, so accumulate gradients, and restore those of other leaves.
    foreign = [node.variable for node in nodes(column) if hasattr(node, "variable")]
    kept = [(leaf, leaf.grad) for leaf in foreign if not any(leaf is tensor for tensor in tensors)]
    for tensor in tensors:
        tensor.grad = None
        tensor.retain_grad()
    for leaf, _ in kept:
        leaf.grad = None
    try:
        column.backward(retain_graph=retain)
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient
    return [tensor.grad for tensor in tensors]


def nodes(scores: Tensor) -> Iterator[Any]:
    """Yield every node of the graph that computed `scores`, each once."""
    yield from behind(scores.grad_fn)


def behind(start: Any) -> Iterator[Any]:
    """Yield a node of a graph and every node from which it was computed, once each."""
    seen: set[Any] = set()
    pending = [start]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
            yield node


def layer_gradients(
    recorder: Recorder, names: Sequence[str], scores: Tensor, *, keep: bool = False, rule: GradientRule = "exact"
) -> dict[str, Tensor]:
    """Return the gradients at recorded layers, `(n, k, *s)` or `(n, m, k, *s)`.

    Exact gradients of all layers come from one backward pass per target. Balanced gradients need one pass per target
    for each group of layers that can share a pass.

    Raises:
        CaptureError: the score does not depend on a layer, or operations are hidden from balanced gradients.
    """
    records = [recorder.records[name] for name in names]
    recorder.recomputing = True
    if rule == "exact":
        return _layer_gradients(records, scores, keep)
    found: dict[str, Tensor] = {}
    passes = shared_passes(scores, [record.captured for record in records], recorder.outputs)
    for number, (places, plan) in enumerate(passes, start=1):
        with following(plan):
            own = [records[place] for place in places]
            found |= _layer_gradients(own, scores, keep or number < len(passes))
    return {name: found[name] for name in names}


def _layer_gradients(records: Sequence[LayerRecord], scores: Tensor, keep: bool) -> dict[str, Tensor]:
    """Run the backward passes of some layers, one for each target."""
    by_target = differentiate(scores, [tensor for record in records for tensor in record.captured], keep=keep)
    found = {}
    for record, columns in zip(records, _by_record(records, by_target), strict=True):
        found[record.name] = _stack(scores, [_maps(record, own) for own in columns])
        record.gradients = [own[0] for own in columns if own[0] is not None]
    return found


def layer_curvature(recorder: Recorder, names: Sequence[str], scores: Tensor) -> dict[str, Tensor]:
    """Return H A at recorded layers, the Hessian of the score times the activations, with one product per target."""
    results = {}
    columns = scores.reshape(scores.shape[0], -1).sum(0)
    recorder.recomputing = True
    for record in (recorder.records[name] for name in names):
        products = []
        # Multiply maps, which leave out prefix tokens, so that A contains only positions.
        activations = record.maps([tensor.detach() for tensor in record.captured])
        for column in columns:
            first = torch.autograd.grad(column, record.captured, create_graph=True, allow_unused=True)
            inner = (_maps(record, first, required=False) * activations).sum()
            second: Sequence[Tensor | None] = [None] * len(record.captured)
            if inner.requires_grad:
                second = torch.autograd.grad(inner, record.captured, retain_graph=True, allow_unused=True)
            # A missing second derivative is zero: the rest of the model is piecewise linear.
            products.append(_maps(record, second, required=False).detach())
        results[record.name] = _stack(scores, products)
    return results


def guided_gradients(scores: Tensor, images: Tensor) -> Tensor:
    """Compute the gradient at the input with negative gradients dropped at every rectifier, `(n, [m,] c, *t)`.

    Rectifiers are ReLU, ReLU6, PReLU and LeakyReLU; PReLU and LeakyReLU keep their slope below zero. The rule is
    attached to the nodes of the graph of `scores`, so it covers functional calls too, and modules are not changed.

    Raises:
        InputError: the model has other activations, for which the rule is not defined, or checkpoints.
    """
    rectifiers = []
    for node in nodes(scores):
        name = node.name().rstrip("0123456789")
        if name in _RECTIFIERS or (name == "HardtanhBackward" and node._saved_min_val == 0):
            rectifiers.append(node)
        elif name in _OTHER_ACTIVATIONS | _OTHER_RECTIFIERS:
            raise InputError(
                f"guided backpropagation is defined for ReLU networks (ReLU6, PReLU, LeakyReLU), but this model uses "
                f"{name.removesuffix('Backward')}; use another method"
            )
    with holding_hooks() as attach:
        for node in rectifiers:
            attach.before_node(node, _clamped)
        found = [own[0] for own in differentiate(scores, [images], keep=True)]
    return _stack(scores, [torch.zeros_like(images) if g is None else g for g in found])


def _clamped(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if own is None else own.clamp(min=0) for own in gradients)


_RECTIFIERS = {"ReluBackward", "PreluKernelBackward", "LeakyReluBackward"}
# Operations that may be a ReLU or something else, and checkpoints, which hide the nodes inside.
_OTHER_RECTIFIERS = {
    f"{name}Backward" for name in ("Clamp", "ClampMin", "Threshold", "Maximum", "Where", "CheckpointFunction")
}
_OTHER_ACTIVATIONS = {
    f"{name}Backward"
    for name in (
        *("Elu", "Gelu", "Glu", "Hardsigmoid", "Hardswish", "Hardtanh", "Mish"),
        *("Selu", "Sigmoid", "Silu", "Softplus", "Tanh", "RreluWithNoise", "Celu"),
    )
}


def _by_record(
    records: Sequence[LayerRecord], by_target: list[list[Tensor | None]]
) -> Iterator[list[list[Tensor | None]]]:
    start = 0
    for record in records:
        stop = start + len(record.captured)
        yield [column[start:stop] for column in by_target]
        start = stop


def _maps(record: LayerRecord, gradients: Sequence[Tensor | None], required: bool = True) -> Tensor:
    if required and all(gradient is None for gradient in gradients):
        raise CaptureError(
            f"the score does not depend on layer {record.name!r}, or the model cuts the gradient after it (detach, "
            "no_grad, or a reentrant checkpoint around the layer); choose a layer from which the score is computed"
        )
    pairs = zip(gradients, record.captured, strict=True)
    return record.maps([torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in pairs])


def _stack(scores: Tensor, by_target: list[Tensor]) -> Tensor:
    return torch.stack(by_target, 1) if scores.ndim == 2 else by_target[0]

"""Find linear heads after mean pooling, and differentiate a layer's output with respect to the layer's own weight."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradcam_kit.capture.deferred_checks import Checks
from gradcam_kit.capture.model.inputs import Runner
from gradcam_kit.capture.model.trees import map_output, whole
from gradcam_kit.capture.recording import LayerRecord
from gradcam_kit.capture.rerun.rescore import tolerance_of
from gradcam_kit.errors import CaptureError, GradCamKitError
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.targets.classes import ClassLogit, score
from gradcam_kit.targets.outputs import find_logits, read_logits
from gradcam_kit.types import Head, Target

_MOST_ROUNDING = 1e-2
# Relative spread below which the weights of all channels are considered equal.
_EQUAL_WEIGHTS = 1e-6


def find_head(
    run: Runner, layer: str, activations: Float[Tensor, "n k *s"], output: Any, target: Target | None, checks: Checks
) -> Head | None:
    """Find a linear layer or 1x1 convolution that computes the logits from the mean-pooled activations.

    A candidate is accepted only if it reproduces all logits of this batch, up to one constant per sample. The tolerance
    is relative to the largest |logit - bias|, because an absolute one would accept any candidate if the activations are
    small.

    Returns:
        The head, or None if no candidate is accepted, or the target is not computed from the logits.
    """
    try:
        logits = read_logits(output)
    except GradCamKitError:
        return None
    if len(logits) != len(activations):
        return None  # the model returns one score for a bag of images
    pooled = activations.flatten(2).mean(2)
    exact = logits.to(pooled)
    for name, module in run.model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2 or weight.numel() != logits.shape[1] * pooled.shape[1]:
            continue
        if tuple(weight.shape[:2]) != (logits.shape[1], pooled.shape[1]):
            continue
        matrix = whole(weight.detach()).flatten(1).to(pooled)
        offset = whole(getattr(module, "bias", None))
        offset = offset.detach().to(pooled) if isinstance(offset, Tensor) else None
        if not checks.cached_bool((layer, name, "head"), _reproduces(pooled, matrix, offset, exact, logits.dtype)):
            continue
        target_weights = _target_weights(run, matrix, output, target)
        if target_weights is None:
            return None
        # After a log-softmax, the outputs equal those of the head up to a constant that depends on the activations.
        is_linear = type(target) is ClassLogit and checks.cached_bool(
            (layer, name, "linear"), _reproduces(pooled, matrix, offset, exact, logits.dtype, up_to_constant=False)
        )
        return Head(matrix, offset, target_weights, is_linear)
    return None


def _reproduces(
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor,
    precision: torch.dtype,
    up_to_constant: bool = True,
) -> Bool[Tensor, ""]:
    evidence = logits if bias is None else logits - bias
    difference = pooled @ weight.T - evidence
    if logits.shape[1] > 1 and up_to_constant:
        # Ignore a constant that the model adds to all logits, because it does not change comparisons between classes.
        difference = difference - difference.mean(1, keepdim=True)
        evidence = evidence - evidence.mean(1, keepdim=True)
    size = evidence.abs().amax()
    # A bias much larger than the evidence causes rounding errors. They are tolerated up to 1 % of the evidence.
    rounding = (torch.finfo(precision).eps * logits.abs().amax()).minimum(_MOST_ROUNDING * size)
    return difference.abs().amax() <= rounding.maximum(tolerance_of(precision, pooled.device) * size)


def _target_weights(
    run: Runner, weight: Tensor, output: Any, target: Target | None
) -> Float[Tensor, "n *targets k"] | None:
    """Return the weight's rows for the explained classes, or d score / d logits times the weight for other targets.

    Without a target, the result is zeros. For a target that is not computed from the logits, it is None.
    """
    logits = find_logits(output)
    n, (classes, channels) = len(read_logits(output)), weight.shape
    if target is None:
        return weight.new_zeros(n, channels)
    if type(target) is ClassLogit:
        return weight[move(target.indices(read_logits(output)), weight.device)]
    with torch.enable_grad(), run.context():
        leaf = logits.detach().requires_grad_()
        # The target gets the model's own output, with the logits as the start of a graph.
        scores = score(target, map_output(lambda value: leaf if value is logits else value, output), n)
        if not scores.requires_grad:
            return None
        columns = scores.reshape(n, -1).sum(0)
        gradients = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in columns]
    stacked = torch.stack(gradients, 1).reshape(n, -1, classes).to(weight) @ weight
    return stacked.reshape(*scores.shape, channels)


def weight_gradients(record: LayerRecord, maps: Float[Tensor, "n k *s"], checks: Checks) -> Float[Tensor, "n k"]:
    """Return d sum(layer output) / d weight per sample, averaged over all axes of the weight except output channels.

    The weight is that of the last submodule of the layer that has one. It is shared by the batch, so a functional
    call on the captured input is mapped over the samples to get one derivative per sample. The deferred checks raise an
    error if all channels get the same weight.

    Raises:
        CaptureError: the layer has no weight with one entry per channel, or returned more or fewer rows than images.
    """
    channels = maps.shape[1]
    name, module = _last_weight(record, channels)
    axis = 1 if getattr(module, "transposed", False) else 0
    weight = module.weight.detach()
    assert record.arguments is not None
    leaves, spec = tree_flatten(record.arguments)
    samples = record.captured[0].shape[0]
    if samples != len(maps):
        raise CaptureError(
            f"layer {record.name!r} returned {samples} rows for {len(maps)} images, and the model has no linear head "
            "after mean pooling; choose a method that uses gradients"
        )
    batched = [isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == samples for leaf in leaves]

    def total(weight: Tensor, *rows: Tensor) -> Tensor:
        taken = iter(rows)
        whole = [next(taken)[None] if per_row else leaf for leaf, per_row in zip(leaves, batched, strict=True)]
        args, kwargs = tree_unflatten(whole, spec)
        output = functional_call(record.module, {f"{name}.weight" if name else "weight": weight}, args, kwargs)
        maps: Tensor = tree_flatten(output)[0][record.chosen[0]]
        return maps.sum()

    rows = [leaf for leaf, per_row in zip(leaves, batched, strict=True) if per_row]
    with torch.enable_grad():
        gradients = vmap(grad(total), in_dims=(None, *(0 for _ in rows)))(weight, *rows)
    per_channel = gradients.movedim(axis + 1, 1).flatten(2).mean(2) if weight.ndim > 1 else gradients
    per_channel = at_least_float32(per_channel).to(maps.device)
    if channels > 1:
        spread = (per_channel - per_channel.mean(1, keepdim=True)).abs().amax()
        checks.add((spread <= _EQUAL_WEIGHTS * per_channel.abs().amax())[None], lambda _: _equal_weights(record.name))
    return per_channel


def _equal_weights(layer: str) -> CaptureError:
    return CaptureError(
        f"layer {layer!r} is linear in its weight, so all its channels get the same weight and the map "
        "would just be their sum; choose a layer that ends after its nonlinearity"
    )


def _last_weight(record: LayerRecord, channels: int) -> tuple[str, Any]:
    owners = [
        (name, module)
        for name, module in record.module.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    ]
    for name, module in reversed(owners):
        axis = 1 if getattr(module, "transposed", False) and module.weight.ndim > 1 else 0
        if module.weight.shape[axis] == channels:
            return name, module
        break
    raise CaptureError(
        f"layer {record.name!r} has no weight with one entry for each of its {channels} channels, and the model has no "
        "linear head after mean pooling; choose a layer that ends with a convolution or normalization, "
        "or a method that uses gradients"
    )

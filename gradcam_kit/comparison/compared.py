"""The compared methods: combine them with layers, run them on the same images, and measure their cost."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import Inputs, Runner, TargetLayers, untouched, with_texts
from gradcam_kit.errors import (
    GradCamKitError,
    InputError,
    UnknownNameError,
    did_you_mean,
    is_same_failure,
    raise_interruption,
)
from gradcam_kit.meter import Meter
from gradcam_kit.methods import METHODS, BalancedCAM, BaseCAM, Explanation, explain_many, single_pass_methods
from gradcam_kit.methods.engine.advice import is_advised
from gradcam_kit.methods.engine.engine import with_images_of
from gradcam_kit.metrics import BASELINES
from gradcam_kit.metrics.baselines import Baseline

MethodLike = str | type[BaseCAM] | BaseCAM
"""A name in `METHODS` or `BASELINES`, a class, or an object with its own model and layers."""

Methods = MethodLike | Sequence[MethodLike] | Mapping[str, MethodLike] | None
Layers = TargetLayers | Mapping[str, TargetLayers] | Sequence[Any] | None

USUAL = ("grad-cam", "grad-cam++", "hires-cam", "layer-cam", "xgrad-cam", "eigen-cam")


@dataclass(frozen=True)
class ComparedMethod:
    """A method with its layers, or a baseline, which does not use a model.

    Attributes:
        label: name of the method in the comparison.
        method: name of the method in `METHODS` or `BASELINES`, or the name of its class.
        cam: the method; None for a baseline.
        baseline: the baseline; None for a method.
    """

    label: str
    method: str
    cam: BaseCAM | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True)
class MethodCost:
    """The cost of a method that explains a single image and shares no pass with other methods; NaN for a baseline.

    Attributes:
        seconds: wall time of the call, with the device synchronized.
        passes: floating-point operations of the call, its forward pass included, divided by those of a forward pass.
        peak_mb: peak memory of the tensors created during the call, in 10^6 bytes.
    """

    seconds: float = float("nan")
    passes: float = float("nan")
    peak_mb: float = float("nan")


def compared_methods(
    model: nn.Module, methods: Methods, target_layers: Layers, options: Mapping[str, Any]
) -> list[ComparedMethod]:
    """Combine methods with layers; the label is "method", or "method layer" if several layers are compared.

    Args:
        model: the model for all methods that are not given as objects.
        methods: see `compare`.
        target_layers: see `compare`.
        options: arguments for the constructors of the methods.

    Raises:
        InputError: there are no methods, or one of them is not a name, a class or an object.
        UnknownNameError: a method that does not exist.
    """
    if methods is None:
        methods = USUAL
    elif isinstance(methods, str) and methods == "all":
        methods = single_pass_methods()
    elif isinstance(methods, str | BaseCAM | type):
        methods = [methods]
    named = methods.items() if isinstance(methods, Mapping) else [("", method) for method in methods]
    alternatives = _alternatives(target_layers)
    found = [one for label, method in named for one in _placed(model, label, method, alternatives, options)]
    if not found:
        raise InputError("there is no method to compare; name at least one, such as methods=['grad-cam']")
    return list(_distinct(found))


def with_baselines(found: Sequence[ComparedMethod]) -> list[ComparedMethod]:
    """Return the compared methods, followed by all baselines that are not among them."""
    there = [one.baseline for one in found if one.baseline is not None]
    others = [
        ComparedMethod(name, name, baseline=baseline) for name, baseline in BASELINES.items() if baseline not in there
    ]
    return list(_distinct([*found, *others]))


def suited(found: Sequence[ComparedMethod], inputs: Inputs) -> tuple[list[ComparedMethod], dict[str, str]]:
    """Return the methods that can explain the first image, and label -> error message for all other methods."""
    first = inputs.first()
    problems = {one.label: _problem(one, first) for one in found}
    left_out = {label: problem for label, problem in problems.items() if problem is not None}
    return [one for one in found if one.label not in left_out], left_out


def _problem(one: ComparedMethod, inputs: Inputs) -> str | None:
    """Return the message of the error with which a method fails on the first image; None if it succeeds.

    Raises:
        Exception: an error that does not recur when the call is repeated, so it is not caused by the method.
    """
    error = _failure(one, inputs)
    if error is None:
        return None
    if not isinstance(error, GradCamKitError) and not is_same_failure(error, _failure(one, inputs)):
        raise error
    return str(error) or type(error).__name__


def _failure(one: ComparedMethod, inputs: Inputs) -> Exception | None:
    try:
        if one.cam is not None:
            images, keywords = call_of(inputs)
            one.cam(images, **keywords)
    except Exception as error:  # any error means that the method does not suit the model or the layer
        raise_interruption(error)
        traceback.clear_frames(error.__traceback__)  # free the activations that the frames hold
        return error
    return None


def call_of(inputs: Inputs) -> tuple[Any, dict[str, Any]]:
    """Return the images and keyword arguments for calling a method."""
    return (inputs.args, inputs.kwargs) if inputs.args else (inputs.kwargs, {})


def with_shared_images(found: Sequence[ComparedMethod], inputs: Inputs, targets: Any) -> Inputs:
    """Return the inputs of the model, with the image input set to the one that all methods explain.

    Raises:
        InputError: the methods explain different inputs, so their heatmaps and metrics cannot be compared.
    """
    called = {one.label: with_images_of(one.cam, inputs, targets) for one in found if one.cam is not None}
    slots = {own.slot for own in called.values()}
    if len(slots) > 1:
        listed = ", ".join(f"{label!r} {own.slot!r}" for label, own in called.items())
        raise InputError(f"the methods explain different inputs ({listed}); compare the methods of one input at a time")
    return next(iter(called.values()), inputs)


def _alternatives(layers: Layers) -> list[tuple[str, TargetLayers | None]]:
    """Return pairs of a label and the layers to compare. Labels are empty unless a mapping gives them."""
    if isinstance(layers, Mapping):
        return list(layers.items())
    if layers is None or isinstance(layers, str | nn.Module):
        return [("", layers)]
    return [("", one) for one in layers]


def _placed(
    model: nn.Module,
    label: str,
    method: MethodLike,
    alternatives: Sequence[tuple[str, TargetLayers | None]],
    options: Mapping[str, Any],
) -> Iterator[ComparedMethod]:
    if isinstance(method, BaseCAM):
        name = method.name or type(method).__name__
        yield ComparedMethod(label or name, name, method)
        return
    if isinstance(method, str) and method in BASELINES:
        yield ComparedMethod(label or method, method, baseline=BASELINES[method])
        return
    kind = _class_of(method)
    name = kind.name or kind.__name__
    if kind.layer_choice.is_fixed:
        alternatives = [("", None)]
    for layer, layers in alternatives:
        cam = kind(model, layers, **options)
        place = layer or "+".join(cam.target_layers or ())
        yield ComparedMethod(f"{label or name} {place}" if len(alternatives) > 1 else label or name, name, cam)


def _class_of(method: Any) -> type[BaseCAM]:
    if isinstance(method, type) and issubclass(method, BaseCAM):
        return method
    if not isinstance(method, str):
        raise InputError(
            f"a method has type {type(method).__name__}; expected a name, a class such as GradCAM, or an object "
            "such as GradCAM(model)"
        )
    if method not in METHODS:
        known = [*METHODS, *BASELINES]
        classes = {kind.__name__.lower(): name for name, kind in METHODS.items()}
        called = classes.get(method.lower())
        hint = (
            f"; did you mean {called!r}?"
            if called
            else did_you_mean(method, known) or f"; known are {', '.join(known)}"
        )
        raise UnknownNameError(f"there is no method {method!r}{hint}")
    return METHODS[method]


def _distinct(found: Sequence[ComparedMethod]) -> Iterator[ComparedMethod]:
    """Append numbers to repeated labels."""
    seen: dict[str, int] = {}
    for one in found:
        seen[one.label] = seen.get(one.label, 0) + 1
        yield one if seen[one.label] == 1 else replace(one, label=f"{one.label} ({seen[one.label]})")


def explained(found: Sequence[ComparedMethod], inputs: Inputs, targets: Any) -> dict[str, Explanation]:
    """Return label -> explanation of each method, in as few passes as possible; baselines are left out."""
    cams = {one.label: one.cam for one in found if one.cam is not None}
    images, keywords = call_of(inputs)
    explanations = explain_many(list(cams.values()), images, targets, **keywords)
    return dict(zip(cams, explanations, strict=True))


def with_balanced(
    found: Sequence[ComparedMethod],
    explanations: Mapping[str, Explanation],
    inputs: Inputs,
    targets: Any,
    options: Mapping[str, Any],
) -> tuple[list[ComparedMethod], Mapping[str, Explanation], dict[str, str]]:
    """Add BalancedCAM if another method has chosen a layer of tokens; return why if BalancedCAM is unsuitable."""
    advised = [one.cam for one in found if one.cam is not None and is_advised(one.cam)]
    if not advised:
        return list(found), explanations, {}
    own = ComparedMethod(BalancedCAM.name, BalancedCAM.name, BalancedCAM(advised[0].model, **options))
    try:
        return [*found, own], {**explanations, **explained([own], inputs, targets)}, {}
    except GradCamKitError as error:  # BalancedCAM may be unsuitable, for example if it cannot balance an operation
        return list(found), explanations, {own.label: str(error)}


def costs(found: Sequence[ComparedMethod], inputs: Inputs, targets: Any) -> dict[str, MethodCost]:
    """Return label -> cost of each method on the first image alone; baselines are left out.

    Args:
        found: the compared methods, with layers already chosen.
        inputs: the images of the comparison.
        targets: the explained targets: class indices `(n, [m])`, or a callable.
    """
    first, index = inputs.first(), torch.zeros(1, dtype=torch.long, device=inputs.images.device)
    if isinstance(targets, Tensor):
        targets = targets[:1]
    elif hasattr(targets, "select"):
        targets = targets.select(index)
    images, keywords = call_of(first)
    results: dict[str, MethodCost] = {}
    forward: dict[nn.Module, int] = {}
    for one in found:
        if one.cam is None:
            continue
        if one.cam.model not in forward:
            forward[one.cam.model] = _forward_flops(one.cam.model, with_texts(one.cam.model, first, targets)[0])
        with Meter(index.device) as meter:
            one.cam(images, targets, **keywords)
            cost = meter.lap()
        whole = forward[one.cam.model]
        passes = cost.flops / whole if whole else float("nan")
        results[one.label] = MethodCost(cost.seconds, passes, cost.peak_bytes / 1e6)
    return results


def _forward_flops(model: nn.Module, inputs: Inputs) -> int:
    """Count the floating-point operations of a forward pass."""
    device = inputs.images.device
    meter = Meter(device)
    with untouched(model, device), meter:
        Runner.of(model, device)(inputs)
    return meter.lap().flops

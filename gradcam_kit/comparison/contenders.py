"""Who takes part in a comparison, methods times layers under names of their own; what they find, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import Inputs, TargetLayers, rescoring
from gradcam_kit.capture.inputs import Runner
from gradcam_kit.capture.state import untouched
from gradcam_kit.errors import InputError, UnknownNameError, did_you_mean
from gradcam_kit.functional import on_device
from gradcam_kit.meter import Meter
from gradcam_kit.methods import METHODS, BaseCAM, Explanation, explain_many, single_pass_methods
from gradcam_kit.metrics import CONTROLS, METRICS, Case, Measured, Metric
from gradcam_kit.metrics.case import Explain
from gradcam_kit.metrics.controls import Control
from gradcam_kit.metrics.draws import identities_of

MethodLike = str | type[BaseCAM] | BaseCAM
"""A name in `METHODS` or `CONTROLS`, a class, or an object that brings its model and layers."""

Methods = MethodLike | Sequence[MethodLike] | Mapping[str, MethodLike] | None
Layers = TargetLayers | Mapping[str, TargetLayers] | Sequence[Any] | None

USUAL = ("grad-cam", "grad-cam++", "hires-cam", "layer-cam", "xgrad-cam", "eigen-cam")


@dataclass(frozen=True)
class Contender:
    """A method on its layers, or a control, which looks at no model.

    Attributes:
        label: its name in the comparison.
        method: its name in `METHODS` or `CONTROLS`; of a class without one, the class name.
    """

    label: str
    method: str
    cam: BaseCAM | None = None
    control: Control | None = None


@dataclass(frozen=True)
class MethodCost:
    """What a method costs by itself, for one image alone; NaN for what looks at no model.

    Attributes:
        seconds: the device waited for.
        passes: arithmetic, in forward passes of the model: 1 for the forward pass, the rest is the method's.
        peak_mb: most memory that new tensors took at once, in 10^6 bytes.
    """

    seconds: float = float("nan")
    passes: float = float("nan")
    peak_mb: float = float("nan")


def contenders(
    model: nn.Module, methods: Methods, target_layers: Layers, options: Mapping[str, Any]
) -> list[Contender]:
    """Methods times layers; labels are "method" or, with several layers, "method layer".

    Args:
        model: of all methods that are not given as objects.
        methods: see `compare`.
        target_layers: see `compare`.
        options: for the constructors of the methods.
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


def known_metric(name: str | Metric) -> Metric:
    """The metric of a name.

    Raises:
        UnknownNameError: not one of `METRICS`.
    """
    if isinstance(name, Metric):
        return name
    if name not in METRICS:
        hint = did_you_mean(str(name), METRICS) or f"; known are {', '.join(METRICS)}"
        raise UnknownNameError(f"there is no metric {name!r}{hint}")
    return METRICS[name]


def suited(found: Sequence[Contender], inputs: Inputs) -> tuple[list[Contender], dict[str, str]]:
    """Those that can explain the first image, and why the others cannot."""
    first = inputs.first()
    problems = {one.label: _problem(one, first) for one in found}
    left_out = {label: problem for label, problem in problems.items() if problem is not None}
    return [one for one in found if one.label not in left_out], left_out


def _problem(one: Contender, inputs: Inputs) -> str | None:
    try:
        if one.cam is not None:
            images, keywords = _call(inputs)
            one.cam(images, **keywords)
    except Exception as error:  # whatever it is, it suits neither the model nor the layer
        return str(error) or type(error).__name__
    return None


def _call(inputs: Inputs) -> tuple[Any, dict[str, Any]]:
    """Images and keywords with which a method is called."""
    return (inputs.args, inputs.kwargs) if inputs.args else (inputs.kwargs, {})


def _alternatives(layers: Layers) -> list[tuple[str, TargetLayers | None]]:
    """Layers to be tried one by one; the name is empty where it is to be found, or where there is but one choice."""
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
) -> Iterator[Contender]:
    if isinstance(method, BaseCAM):
        name = method.name or type(method).__name__
        yield Contender(label or name, name, method)
        return
    if isinstance(method, str) and method in CONTROLS:
        yield Contender(label or method, method, control=CONTROLS[method])
        return
    kind = _class_of(method)
    name = kind.name or kind.__name__
    if kind.layer_choice.is_fixed:
        alternatives = [("", None)]
    for layer, layers in alternatives:
        cam = kind(model, layers, **options)
        place = layer or "+".join(cam.target_layers or ())
        yield Contender(f"{label or name} {place}" if len(alternatives) > 1 else label or name, name, cam)


def _class_of(method: Any) -> type[BaseCAM]:
    if isinstance(method, type) and issubclass(method, BaseCAM):
        return method
    if not isinstance(method, str):
        raise InputError(
            f"a method is a {type(method).__name__}; expected a name, a class such as GradCAM, or an object"
        )
    if method not in METHODS:
        known = [*METHODS, *CONTROLS]
        classes = {kind.__name__.lower(): name for name, kind in METHODS.items()}
        called = classes.get(method.lower())
        hint = (
            f"; did you mean {called!r}" if called else did_you_mean(method, known) or f"; known are {', '.join(known)}"
        )
        raise UnknownNameError(f"there is no method {method!r}{hint}")
    return METHODS[method]


def _distinct(found: Sequence[Contender]) -> Iterator[Contender]:
    """Number labels that come again."""
    seen: dict[str, int] = {}
    for one in found:
        seen[one.label] = seen.get(one.label, 0) + 1
        yield one if seen[one.label] == 1 else replace(one, label=f"{one.label} ({seen[one.label]})")


def explained(found: Sequence[Contender], inputs: Inputs, targets: Any) -> dict[str, Explanation]:
    """Explanations of all that look at the model, by label, from as few passes as possible."""
    cams = {one.label: one.cam for one in found if one.cam is not None}
    images, keywords = _call(inputs)
    explanations = explain_many(list(cams.values()), images, targets, **keywords)
    return dict(zip(cams, explanations, strict=True))


def costs(found: Sequence[Contender], inputs: Inputs, targets: Any) -> dict[str, MethodCost]:
    """What each method that looks at the model costs when it explains the first image alone, by label.

    Args:
        found: the contenders, whose layers are chosen already.
        inputs: those of the comparison.
        targets: what was explained: class indices `(n, [m])`, or a callable.
    """
    first, index = inputs.first(), torch.zeros(1, dtype=torch.long, device=inputs.images.device)
    if isinstance(targets, Tensor):
        targets = targets[:1]
    elif hasattr(targets, "select"):
        targets = targets.select(index)
    images, keywords = _call(first)
    results, forward = {}, None
    for one in found:
        if one.cam is None:
            continue
        if forward is None:
            forward = _forward_flops(one.cam.model, first)
        with Meter(index.device) as meter:
            one.cam(images, targets, **keywords)
            cost = meter.lap()
        passes = cost.flops / forward if forward else float("nan")
        results[one.label] = MethodCost(cost.seconds, passes, cost.peak_bytes / 1e6)
    return results


def _forward_flops(model: nn.Module, inputs: Inputs) -> int:
    """Arithmetic of a forward pass."""
    device = inputs.images.device
    meter = Meter(device)
    with untouched(model, device), meter:
        Runner.of(model, device)(inputs)
    return meter.lap().flops


def control_maps(
    found: Sequence[Contender], images: Tensor, targets: int | None, seed: int, identities: Tensor | None
) -> dict[str, Tensor]:
    """The heatmaps of all controls, by label; the same for each of `targets` targets, None = no axis for them."""
    maps = {one.label: one.control(images, seed, identities) for one in found if one.control is not None}
    if targets is None:
        return maps
    return {label: one[:, None].expand(-1, targets, *one.shape[1:]) for label, one in maps.items()}


@torch.inference_mode(False)
def measured(
    model: nn.Module,
    images: Tensor,
    heatmaps: Mapping[str, Tensor],
    found: Sequence[Contender],
    metrics: Sequence[Metric],
    *,
    targets: Any,
    policy: str,
    masks: Tensor | None,
    seed: int,
    identities: Tensor | None,
    batch_size: int,
) -> dict[str, dict[str, Measured]]:
    """Label -> metric -> one number per image and target, those of the first image first.

    Args:
        model: what the images are shown to again.
        images: `(n, c, *t)`.
        heatmaps: label -> `(n, [m,] *t)`.
        found: the contenders, for metrics that run a method again.
        metrics: what to measure.
        targets: what was explained: class indices `(n, [m])`, or a callable.
        policy: where they come from, in words.
        masks: `(n, *t)` or None.
        seed: of random draws.
        identities: a number per image; None = from its values.
        batch_size: the most rows in one forward pass.
    """
    if not metrics:
        return {}
    several = isinstance(targets, Tensor) and targets.ndim == 2
    count = targets.shape[1] if several else 1
    repeat = partial(torch.repeat_interleave, repeats=count, dim=0)
    classes = targets.flatten() if isinstance(targets, Tensor) else targets
    rows = repeat(images)
    shown = None if masks is None else repeat(on_device(masks, images.device))
    whose = repeat(identities_of(identities, images))
    asks_model = any({"rescore", "predicts"} & set(metric.uses) for metric in metrics)
    results: dict[str, dict[str, Measured]] = {}
    scoring = rescoring(model, rows, classes, batch_size=batch_size) if asks_model else nullcontext()
    with scoring as rescore:
        if rescore is not None:
            rescore = replace(rescore, settings={**rescore.settings, "classes": policy})
        for one in found:
            maps = heatmaps[one.label].flatten(0, 1) if several else heatmaps[one.label]
            explain = _again(one, classes, seed, whose)
            case = Case(maps, rows, rescore, masks=shown, explain=explain, seed=seed, identities=whose)
            results[one.label] = {metric.name: metric(case) for metric in metrics}
    return results


def _again(one: Contender, classes: Any, seed: int, identities: Tensor) -> Explain | None:
    """The contender as a callable from changed images to heatmaps for the same classes."""
    if one.cam is not None:
        return partial(one.cam, targets=classes)
    return None if one.control is None else partial(one.control, seed=seed, identities=identities)

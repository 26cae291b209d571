"""Sanity checks, `cam.check(images)`: Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradcam_kit.capture import (
    ClassLogit,
    Inputs,
    Request,
    capture,
    find_layers,
    in_fastest_format,
    randomizing,
    read_inputs,
    resolve_target,
    with_texts,
)
from gradcam_kit.errors import CaptureError, GradCamKitError, LayerNotFoundError
from gradcam_kit.methods.contract import Method, rule_of
from gradcam_kit.methods.engine.engine import explain_many, with_images_of
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.similarity import pearson, ranks
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.types import Evidence, Images

_DRAWS = 3
# Above these mean rank correlations two maps are considered the same. Maps of random parameters correlate more than by
# chance, because the image is the same; maps of another class may correlate strongly where classes look alike.
_SAME_PARAMETERS = 0.5
_SAME_CLASS = 0.95


@dataclass(frozen=True, eq=False)
class SanityCheck:
    """Result of a sanity check, which `print` shows as a table. n counts maps: each target of each image.

    Attributes:
        method: name of the method's class.
        layers: names of the target layers.
        parameters: `(n,)` rank correlation of each map with the map of the same model with random parameters, averaged
            over several draws; NaN where a map is constant. Near 1: the map does not show what the model learned.
        classes: `(n,)` rank correlation of each map with the map of the least likely other class; NaN where there is no
            other class, or a map is constant. Near 1: the map is the same for both classes.
        is_empty: `(n,)`, True for maps without positive evidence.
        is_unreached: `(n,)`, True for maps whose score has no gradient at the positions of the layers.
        warnings: what is wrong, in words; empty if the check passed.
    """

    method: str
    layers: tuple[str, ...]
    parameters: Float[Tensor, " n"]
    classes: Float[Tensor, " n"]
    is_empty: Bool[Tensor, " n"]
    is_unreached: Bool[Tensor, " n"]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the check found nothing to warn about."""
        return not self.warnings

    def __repr__(self) -> str:
        rows = [f"  {name:<34}{value}" for name, value in self._rows()]
        return "\n".join([self._title(), *rows, *(f"  ! {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left">'
        rows = "".join(f"<tr>{cell}{escape(name)}</td>{cell}{escape(value)}</td></tr>" for name, value in self._rows())
        warnings = "".join(f"<li>{escape(warning)}</li>" for warning in self.warnings)
        return f"<p>{escape(self._title())}</p><table>{rows}</table>" + f"<ul>{warnings}</ul>" * bool(warnings)

    def _title(self) -> str:
        verdict = "passed" if self.passed else f"{len(self.warnings)} warning{'s' * (len(self.warnings) > 1)}"
        return f"Sanity check of {self.method} at {', '.join(self.layers) or 'no layer'}: {verdict}"

    def _rows(self) -> list[tuple[str, str]]:
        n = len(self.is_empty)
        return [
            ("same map, random parameters", _correlation(self.parameters)),
            ("same map, another class", _correlation(self.classes)),
            ("empty maps", f"{int(self.is_empty.sum())} of {n}"),
            ("without gradient to positions", f"{int(self.is_unreached.sum())} of {n}"),
        ]


@torch.inference_mode(False)  # text embeddings made in inference mode cannot enter an autograd graph
def check(cam: Method, images: Images, targets: Any, seed: int, forward_kwargs: Mapping[str, Any]) -> SanityCheck:
    """Compare the maps with those of another class and of random parameters. The model is restored afterwards."""

    def explain(method: Method, targets: Any) -> Explanation:
        return explain_many([method], images, targets, **forward_kwargs)[0]

    try:
        # Embed the texts once, so that the later passes find the embeddings in the target.
        inputs, targets = with_texts(cam.model, read_inputs(images, dict(forward_kwargs), cam.model), targets)
        original = explain(cam, targets)
    except (CaptureError, LayerNotFoundError) as error:
        nothing = torch.empty(0)
        layers = tuple(cam.target_layers or ())
        return SanityCheck(
            type(cam).__name__, layers, nothing, nothing, nothing.bool(), nothing.bool(), (f"no map: {error}",)
        )
    fixed = targets if callable(targets) else original.targets
    same = _at(cam, original.layers)
    unreached, problem = _unreached(same, inputs, fixed, original)
    others = None if callable(targets) else _least_likely(original)
    classes = _undefined(original)
    if others is not None:
        classes = _similarity(original, explain(same, others))
    draws = []
    with randomizing(
        cam.model, images, seed=seed, keep_modes=cam.keep_modes, entry=inputs.entry, **forward_kwargs
    ) as randomizer:
        for draw in range(_DRAWS):
            randomizer.randomize(draw=draw)
            draws.append(_similarity(original, explain(same, fixed)))
    parameters = torch.stack(draws).nanmean(0)
    return SanityCheck(
        method=type(cam).__name__,
        layers=original.layers,
        parameters=parameters,
        classes=classes,
        is_empty=original.is_empty.flatten(),
        is_unreached=unreached,
        warnings=tuple(_warnings(original, parameters, classes, unreached, problem)),
    )


def _at(cam: Method, layers: Sequence[str]) -> Method:
    """Return the method with its layers fixed, because it might choose other layers once parameters are random."""
    same = copy.copy(cam)
    if not cam.layer_choice.is_fixed:
        same.target_layers, same.chosen_layers = find_layers(cam.model, list(layers), cam.model), {}
    return same


def _unreached(cam: Method, inputs: Inputs, targets: Any, original: Explanation) -> tuple[Bool[Tensor, " n"], str]:
    """Return for which maps no gradient reaches the positions of the layers, and the error if the pass failed."""
    none = torch.zeros_like(original.is_empty.flatten())
    if cam.layer_choice.is_fixed or original.scores is None:
        return none, ""
    layers = cam.target_layers or {}

    def largest_gradients(inputs: Inputs) -> list[Tensor]:
        needs_at = dict.fromkeys(layers, Evidence.GRADIENTS)
        target = resolve_target(targets, ClassLogit)
        rules_at = {name: {rule_of(cam)} for name in layers}
        request = Request(
            layers, needs_at, target, ClassLogit, cam.reshape, keep_modes=cam.keep_modes, rules_at=rules_at
        )
        with capture(cam.model, inputs, request) as captured:
            return [found.abs().flatten(original.is_empty.ndim).amax(-1) for found in captured.gradients.values()]

    try:
        inputs = with_images_of(cam, inputs, targets)
        arriving = torch.stack(in_fastest_format(cam.model, inputs, largest_gradients))
    except GradCamKitError as error:
        return ~none, str(error)
    return (arriving == 0).all(0).flatten(), ""


def _least_likely(original: Explanation) -> Tensor | None:
    """Return the least likely class other than the target, per target; None if there is none, or no class target."""
    if original.targets is None or original.output is None:
        return None
    logits = read_logits(original.output)
    if logits.shape[1] < 2:
        return None
    others = logits.argsort(1)[:, :2]
    classes = original.targets.reshape(len(logits), -1)
    chosen = torch.where(others[:, :1] == classes, others[:, 1:], others[:, :1])
    return chosen.reshape(original.targets.shape)


def _similarity(first: Explanation, second: Explanation) -> Float[Tensor, " n"]:
    """Return the rank correlation of the signed maps, or of the heatmaps if several layers were fused."""
    pair = [next(iter(one.saliency.values())) if len(one.saliency) == 1 else one.heatmaps for one in (first, second)]
    flat = [maps.flatten(first.is_empty.ndim).flatten(0, first.is_empty.ndim - 1) for maps in pair]
    return pearson(ranks(flat[0]), ranks(flat[1]))


def _undefined(original: Explanation) -> Float[Tensor, " n"]:
    return torch.full_like(original.is_empty.flatten(), torch.nan, dtype=torch.float64)


def _warnings(original: Explanation, parameters: Tensor, classes: Tensor, unreached: Tensor, problem: str) -> list[str]:
    n, layers = len(parameters), ", ".join(original.layers)
    found = []
    if problem:
        found.append(f"no gradient to positions: {problem}")
    elif unreached.all() and _scores_nothing(original):
        found.append("all classes have the same score for every image, as with an untrained head")
    elif unreached.any():
        found.append(
            f"no gradient reaches the positions of {layers} for {int(unreached.sum())} of {n} maps: their score "
            "does not depend on positions, or is saturated; choose another layer, or explain the logit"
        )
    if (empty := int(original.is_empty.sum())) > 0:
        found.append(f"{empty} of {n} maps are empty: no positive evidence for the class at {layers}")
    if (undefined := int(parameters.isnan().sum())) == n:
        found.append("all maps are constant before or after the parameters were randomized, so no maps can be compared")
    elif undefined:
        found.append(f"{undefined} of {n} maps are constant, before or after the parameters were randomized")
    if float(parameters.nanmean()) > _SAME_PARAMETERS:
        found.append(
            f"the maps hardly change when all parameters are random (rank correlation {parameters.nanmean():.2f}): "
            "they show the image more than what the model learned"
        )
    if float(classes.nanmean()) > _SAME_CLASS:
        found.append(
            f"the maps are nearly the same for another class (rank correlation {classes.nanmean():.2f}): they do not "
            "show why the model scores this class"
        )
    return found


def _scores_nothing(original: Explanation) -> bool:
    if original.targets is None or original.output is None:
        return False
    logits = read_logits(original.output)
    return logits.shape[1] > 1 and bool((logits == logits[:1, :1]).all())


def _correlation(values: Tensor) -> str:
    count = int((~values.isnan()).sum())
    return f"rank correlation {values.nanmean():+.2f} (n = {count})" if count else "not defined"

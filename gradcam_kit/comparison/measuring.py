"""Measure the heatmaps of methods and baselines with metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradcam_kit.capture import ClassLogit, Inputs, Request, Rescoring, capture, check_model
from gradcam_kit.comparison.compared import ComparedMethod, call_of
from gradcam_kit.comparison.question import Question
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.methods import BaseCAM
from gradcam_kit.metrics import BASELINES, METRICS, Metric, MetricInput, MetricResult, Status
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.registry import Explain, Represent
from gradcam_kit.metrics.rows import sample_index
from gradcam_kit.types import Evidence

RANDOM_DRAWS = 5
"""Number of draws of the random baseline. A single draw may be lucky, so an image gets the mean over all draws."""


def known_metric(name: str | Metric) -> Metric:
    """Return the metric with this name; a `Metric` is returned as it is.

    Raises:
        UnknownNameError: a name that is not in `METRICS`.
    """
    return name if isinstance(name, Metric) else METRICS[name]


def known_metrics(names: Iterable[str | Metric]) -> list[Metric]:
    """Return the metrics with these names, or these metrics themselves, without duplicates.

    Raises:
        UnknownNameError: a name that is not in `METRICS`.
        OptionError: two different metrics with the same name.
    """
    found: dict[str, Metric] = {}
    for metric in map(known_metric, names):
        if found.setdefault(metric.name, metric) != metric:
            raise OptionError(
                f"two different metrics are named {metric.name!r}, so the numbers of one would be lost; "
                f"give them different names: dataclasses.replace(metric, name={metric.name + '-2'!r})"
            )
    return list(found.values())


def baseline_maps(question: Question, found: Iterable[ComparedMethod], targets: int | None) -> dict[str, Tensor]:
    """Return label -> heatmaps of each baseline, repeated for `targets` targets; None = maps without that axis."""
    return {one.label: _baseline_map(question, one, targets) for one in found if one.baseline is not None}


def _baseline_map(question: Question, one: ComparedMethod, targets: int | None, draw: int = 0) -> Tensor:
    """Return the heatmaps of a baseline; `draw` numbers the draws of a random one."""
    assert one.baseline is not None
    drawn = one.baseline(question.inputs.images, question.seed + draw, question.identities)
    return drawn if targets is None else drawn[:, None].expand(-1, targets, *drawn.shape[1:])


@torch.inference_mode(False)
def measure_all(
    question: Question, heatmaps: Mapping[str, Tensor], found: Iterable[ComparedMethod], metrics: Sequence[Metric]
) -> dict[str, dict[str, MetricResult]]:
    """Return label -> metric -> result, with one value per image and target, all targets of the first image first.

    Args:
        question: the images, classes and scores.
        heatmaps: label -> `(n, [m,] *t)`.
        found: the compared methods and baselines, because some metrics run them again. The random baseline is drawn
            `RANDOM_DRAWS` times.
        metrics: metrics to measure.

    Raises:
        OptionError: a callable target that gives several maps per image.
    """
    if not metrics:
        return {}
    rows = _one_target_each(question)
    asks_model = any({"rescore", "predicts", "explain"} & set(metric.uses) for metric in metrics)
    results: dict[str, dict[str, MetricResult]] = {}
    rescorers: dict[nn.Module, Rescoring] = {}
    found = list(found)
    cams = {check_model(one.cam.model): one.cam for one in reversed(found) if one.cam is not None}
    with ExitStack() as stack:
        for one in found:
            model = question.model if one.cam is None else check_model(one.cam.model)
            if asks_model and model not in rescorers:
                scored = stack.enter_context(question.rescoring(model, rows.inputs, rows.targets))
                rescorers[model] = replace(scored, settings={**scored.settings, "classes": question.policy})
            maps = heatmaps[one.label]
            if callable(question.targets) and maps.ndim == rows.inputs.images.ndim:
                raise OptionError(
                    f"metrics measure one map per image, but this target gives {maps.shape[1]}; compare one target at "
                    "a time, such as TextTarget('a cat')"
                )
            measured = []
            for draw in range(_draws_of(one)):
                maps = maps if draw == 0 else _baseline_map(question, one, _targets_each(question), draw)
                case = MetricInput(
                    maps.flatten(0, 1) if _has_several(question) else maps,
                    rows.inputs.images,
                    rescorers.get(model),
                    masks=rows.masks,
                    explain=_again(one, rows, draw),
                    represent=_layers_of(cams.get(model) if one.cam is None else one.cam, rows),
                    seed=question.seed,
                    identities=rows.identities,
                )
                measured.append({metric.name: metric(case) for metric in metrics})
            results[one.label] = {
                metric.name: mean_of_draws([own[metric.name] for own in measured]) for metric in metrics
            }
    return results


def mean_of_draws(draws: Sequence[MetricResult]) -> MetricResult:
    """Average each image's metric over the draws whose status is OK.

    `details["draws"]` keeps the value of every draw, NaN where its status is not OK. The other details, such as curves,
    are averaged over the same draws, so the area under a mean curve equals the mean area. A detail whose shape differs
    between draws is dropped. An image has status OK if any of its draws has it.
    """
    if len(draws) == 1:
        return draws[0]
    first, ok = draws[0], torch.stack([one.ok for one in draws], 1)
    counts = ok.any(1)
    values = torch.stack([one.values for one in draws], 1)
    details = {}
    for name, own in first.details.items():
        each = [one.details[name] for one in draws if name in one.details]
        if len(each) == len(draws) and {one.shape for one in each} == {own.shape} and own.shape[:1] == counts.shape:
            details[name] = _mean_where(torch.stack([at_least_float32(one) for one in each], 1), ok)
    return replace(
        first,
        values=_mean_where(values, ok),
        status=first.status.masked_fill(counts, int(Status.OK)),
        details={**details, "draws": values.where(ok, torch.nan)},
    )


def _mean_where(draws: Float[Tensor, "n draws *rest"], ok: Bool[Tensor, "n draws"]) -> Float[Tensor, "n *rest"]:
    """Return the mean over the draws whose status is OK, or the first draw if no draw has status OK."""
    counted = ok.reshape(*ok.shape, *(1 for _ in draws.shape[2:]))
    return draws.where(counted, torch.nan).nanmean(1).where(counted.any(1), draws[:, 0])


def _draws_of(one: ComparedMethod) -> int:
    return RANDOM_DRAWS if one.baseline is BASELINES["random"] else 1


def _has_several(question: Question) -> bool:
    """Whether the maps have an axis of targets."""
    return _targets_each(question) is not None


def _targets_each(question: Question) -> int | None:
    """Return the number of targets of each image, or None if maps have no axis of targets."""
    targets = question.targets
    return targets.shape[1] if isinstance(targets, Tensor) and targets.ndim == 2 else None


def _one_target_each(question: Question) -> Question:
    """Return the question with one row for each image and target, as metrics expect it."""
    targets, images = question.targets, question.inputs.images
    repeat = partial(torch.repeat_interleave, repeats=targets.shape[1] if _has_several(question) else 1, dim=0)
    return replace(
        question,
        inputs=question.inputs.with_images(repeat(images), repeat(sample_index(images))),
        targets=targets.flatten() if isinstance(targets, Tensor) else targets,
        masks=None if question.masks is None else repeat(move(question.masks, images.device)),
        identities=repeat(identities_of(question.identities, images)),
    )


def _again(one: ComparedMethod, rows: Question, draw: int = 0) -> Explain | None:
    """Return a function from changed images to the heatmaps of a method for the same classes, or of a baseline."""
    if one.cam is not None:
        return partial(_explained, one.cam, rows.inputs, rows.targets)
    return None if one.baseline is None else partial(one.baseline, seed=rows.seed + draw, identities=rows.identities)


def _layers_of(cam: BaseCAM | None, rows: Question) -> Represent | None:
    """Return a function from changed images to the activations of a method's layers; None without layers."""
    if cam is None:
        return None
    chosen = cam.chosen_layers
    layers = cam.target_layers or chosen.get(tuple(rows.inputs.images.shape[2:])) or chosen.get(())
    return partial(_activations, cam, layers, rows.inputs) if layers else None


def _activations(cam: BaseCAM, layers: Mapping[str, nn.Module], inputs: Inputs, changed: Tensor) -> Tensor:
    """Return the activations of all layers, flattened and concatenated, one row per image."""
    request = Request(
        layers, dict.fromkeys(layers, Evidence.NONE), None, ClassLogit, cam.reshape, keep_modes=cam.keep_modes
    )
    with capture(check_model(cam.model), inputs.with_images(changed), request) as captured:
        found = [captured.layer(name, Evidence.NONE, cam.batch_size).activations for name in layers]
    return torch.cat([one.flatten(1) for one in found], 1)


def _explained(cam: BaseCAM, inputs: Inputs, classes: Any, changed: Tensor) -> Tensor:
    images, keywords = call_of(inputs.with_images(changed))
    heatmaps: Tensor = cam(images, classes, **keywords)
    return heatmaps

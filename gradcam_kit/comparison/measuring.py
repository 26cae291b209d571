"""Measure what is compared, methods and baselines alike, by metrics of these names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import Inputs, Rescoring, check_model, rescoring
from gradcam_kit.comparison.compared import ComparedMethod, call_of
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import move
from gradcam_kit.methods import BaseCAM
from gradcam_kit.metrics import METRICS, Metric, MetricInput, MetricResult
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.registry import Explain
from gradcam_kit.metrics.rows import sample_index
from gradcam_kit.targets.scores import ScoreKind


def known_metric(name: str | Metric) -> Metric:
    """The metric of a name.

    Raises:
        UnknownNameError: not one of `METRICS`.
    """
    return name if isinstance(name, Metric) else METRICS[name]


def known_metrics(names: Iterable[str | Metric]) -> list[Metric]:
    """The metrics of these names, each once.

    Raises:
        UnknownNameError: not one of `METRICS`.
        OptionError: two different metrics of one name.
    """
    found: dict[str, Metric] = {}
    for metric in map(known_metric, names):
        if found.setdefault(metric.name, metric) != metric:
            raise OptionError(
                f"two different metrics are named {metric.name!r}, so the numbers of one would be lost; give them "
                f"names of their own: dataclasses.replace(metric, name={metric.name + '-2'!r})"
            )
    return list(found.values())


def baseline_maps(
    found: Sequence[ComparedMethod], images: Tensor, targets: int | None, seed: int, identities: Tensor | None
) -> dict[str, Tensor]:
    """Return the heatmaps of all baselines by label, the same for each of `targets` targets (None = no such axis)."""
    maps = {one.label: one.baseline(images, seed, identities) for one in found if one.baseline is not None}
    if targets is None:
        return maps
    return {label: one[:, None].expand(-1, targets, *one.shape[1:]) for label, one in maps.items()}


@torch.inference_mode(False)
def measured(
    model: nn.Module,
    inputs: Inputs,
    heatmaps: Mapping[str, Tensor],
    found: Sequence[ComparedMethod],
    metrics: Sequence[Metric],
    *,
    targets: Any,
    policy: str,
    masks: Tensor | None,
    seed: int,
    identities: Tensor | None,
    batch_size: int,
    keep_modes: bool = False,
    scores: Mapping[nn.Module, ScoreKind | None],
) -> dict[str, dict[str, MetricResult]]:
    """Label -> metric -> one number per image and target, those of the first image first.

    Args:
        model: what the images are shown to again; for a method of another model its own is asked.
        inputs: the images, and what else the model gets with them.
        heatmaps: label -> `(n, [m,] *t)`.
        found: the compared methods, for metrics that run a method again.
        metrics: what to measure.
        targets: what was explained: class indices `(n, [m])`, or a callable.
        policy: where they come from, in words.
        masks: `(n, *t)` or None.
        seed: of random draws.
        identities: a number per image; None = from its values.
        batch_size: the most rows in one forward pass.
        keep_modes: leave modules that are in train mode in it.
        scores: what the probability of a class is for each model, see `ClassProbability`; None = by evidence.
    """
    if not metrics:
        return {}
    several = isinstance(targets, Tensor) and targets.ndim == 2
    count = targets.shape[1] if several else 1
    repeat = partial(torch.repeat_interleave, repeats=count, dim=0)
    images = inputs.images
    classes = targets.flatten() if isinstance(targets, Tensor) else targets
    asked_with = inputs.with_images(repeat(images), repeat(sample_index(images)))
    rows, (call, keywords) = asked_with.images, call_of(asked_with)
    shown = None if masks is None else repeat(move(masks, images.device))
    whose = repeat(identities_of(identities, images))
    asks_model = any({"rescore", "predicts", "explain"} & set(metric.uses) for metric in metrics)
    results: dict[str, dict[str, MetricResult]] = {}
    rescorers: dict[nn.Module, Rescoring] = {}
    with ExitStack() as stack:
        for one in found:
            asked = model if one.cam is None else check_model(one.cam.model)
            if asks_model and asked not in rescorers:
                scored = stack.enter_context(
                    rescoring(
                        asked,
                        call,
                        classes,
                        image_input=inputs.slot,
                        scores=scores.get(asked),
                        batch_size=batch_size,
                        keep_modes=keep_modes,
                        **keywords,
                    )
                )
                rescorers[asked] = replace(scored, settings={**scored.settings, "classes": policy})
            rescore = rescorers.get(asked)
            maps = heatmaps[one.label].flatten(0, 1) if several else heatmaps[one.label]
            explain = _again(one, asked_with, classes, seed, whose)
            case = MetricInput(maps, rows, rescore, masks=shown, explain=explain, seed=seed, identities=whose)
            results[one.label] = {metric.name: metric(case) for metric in metrics}
    return results


def _again(one: ComparedMethod, inputs: Inputs, classes: Any, seed: int, identities: Tensor) -> Explain | None:
    """Return the method as a callable from changed images to heatmaps for the same classes, all else as it is."""
    if one.cam is not None:
        return partial(_explained, one.cam, inputs, classes)
    return None if one.baseline is None else partial(one.baseline, seed=seed, identities=identities)


def _explained(cam: BaseCAM, inputs: Inputs, classes: Any, changed: Tensor) -> Tensor:
    images, keywords = call_of(inputs.with_images(changed))
    heatmaps: Tensor = cam(images, classes, **keywords)
    return heatmaps

"""Time against quality on pictures whose objects are known, and what fewer channels cost Score-CAM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from scipy.stats import rankdata
from torch import Tensor, nn

from benchmarks.measure import Work, interleave, memory_bounded
from benchmarks.methods import FORWARD
from benchmarks.options import Limit, Out, Quick, Rounds, Threads
from benchmarks.results import Figure, Results, Row, environment, place_of
from benchmarks.works import forward
from gradcam_kit import METHODS, ScoreCAM
from gradcam_kit.demo import HELD_OUT, Batch, collate, draw, load_demo_model
from gradcam_kit.methods.channels import Ranking
from gradcam_kit.types import LayerChoice

LAYER, EARLIER = "layer4", "layer3"
SHARES: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
CHANCE = "chance"
FIRST_SEED = HELD_OUT + 1000
"""Pictures beyond the bundled ones that no training has seen."""

CHUNK = 32
"""Rows in one forward pass of a perturbation method."""


def run(
    images: Annotated[int, typer.Option(help="pictures that are drawn", min=1)] = 32,
    rounds: Rounds = 3,
    limit: Limit = 30.0,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """How much of each method's heatmaps lies on the object, beside its time; Score-CAM with some of the channels."""
    torch.set_num_threads(threads)
    methods, shares, layers = list(METHODS), SHARES, [LAYER, EARLIER]
    if quick:
        images, rounds = 2, 1
        methods, shares, layers = ["grad-cam", "random-cam", "attention-rollout"], SHARES[2:3], [LAYER]
    model = load_demo_model()
    batch = collate([draw(seed) for seed in range(FIRST_SEED, FIRST_SEED + images)])
    with memory_bounded():
        rows = list(method_rows(model, batch, methods, rounds, limit))
        for layer in layers:
            rows += channel_rows(model, batch.images, layer, shares, rounds, limit)
    settings = environment("cpu", seed=FIRST_SEED, images=images, rounds=rounds, limit=limit, model="demo")
    Results("quality", settings, rows).finish(place_of("quality", "cpu", out, quick))


def method_rows(model: nn.Module, batch: Batch, methods: Sequence[str], rounds: int, limit: float) -> Iterator[Row]:
    """Time and quality of each method for the predicted classes, at the last stage unless the method says otherwise."""

    def work(name: str) -> Work:
        layers = LAYER if METHODS[name].layer_choice is LayerChoice.LAST else None
        return lambda: METHODS[name](model, layers, batch_size=CHUNK)(batch.images)

    works = {FORWARD: forward(model, batch.images), **{name: work(name) for name in methods}}
    runs = interleave(works, rounds, limit)
    for name in methods:
        timed = runs[name]
        case: dict[str, str | int] = {"what": "method", "method": name}
        if timed.skipped:
            yield Row(case, skipped=timed.skipped)
            continue
        figures = {
            "seconds_per_image": Figure.of(seconds / len(batch.images) for seconds in timed.times),
            "ratio": timed.over(runs[FORWARD]),
            "passes": timed.passes(runs[FORWARD]),
            "energy": energy(timed.result, batch.masks),
        }
        yield Row(case, figures)
    chance = Figure.of(batch.masks.float().mean((1, 2)).tolist())
    yield Row({"what": "method", "method": CHANCE}, {"energy": chance}, note="the object's share of the picture")


def energy(heatmaps: Tensor, masks: Tensor) -> Figure:
    """Share of each heatmap that lies on the object, over the images whose map is not empty."""
    inside, whole = (heatmaps * masks).sum((1, 2)), heatmaps.sum((1, 2))
    return Figure.of((inside / whole)[whole > 0].tolist())


def channel_rows(
    model: nn.Module, images: Tensor, layer: str, shares: Sequence[float], rounds: int, limit: float
) -> Iterator[Row]:
    """Time of Score-CAM with some of the channels / with all, and how well the maps' positions keep their order."""

    def work(**options: Any) -> Work:
        cam = ScoreCAM(model, layer, batch_size=CHUNK, **options)
        return lambda: cam.explain(images).saliency[layer]

    chosen = {(rule, share): work(channels=share, ranking=rule) for rule in get_args(Ranking) for share in shares}
    named = {f"{rule} {share}": one for (rule, share), one in chosen.items()}
    runs = interleave({FORWARD: forward(model, images), "exact": work(), **named}, rounds, limit)
    exact = runs["exact"]
    for rule, share in chosen:
        timed = runs[f"{rule} {share}"]
        case: dict[str, str | int] = {"what": "score-cam", "layer": layer, "rule": rule, "channels": str(share)}
        if timed.skipped or exact.skipped:
            yield Row(case, skipped=timed.skipped or exact.skipped)
            continue
        figures = {
            "seconds_per_image": Figure.of(seconds / len(images) for seconds in timed.times),
            "ratio": timed.over(exact),
            "passes": timed.passes(runs[FORWARD]),
            "correlation": rank_correlation(timed.result, exact.result),
        }
        yield Row(case, figures)


def rank_correlation(maps: Tensor, others: Tensor) -> Figure:
    """Spearman's correlation of each map with the other of its image, over the images where both maps vary."""
    ranks = [rankdata(one.flatten(1).numpy(force=True), axis=1) for one in (maps, others)]
    first, second = (one - one.mean(1, keepdims=True) for one in ranks)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    varies = norms > 0
    return Figure.of(((first * second).sum(1)[varies] / norms[varies]).tolist())

"""Measure time and quality on images with known objects, and the effect of fewer channels on Score-CAM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, get_args

import numpy as np
import typer
from scipy.stats import rankdata
from torch import Tensor, nn

from benchmarks.measure import Run, Work, interleave
from benchmarks.methods import FORWARD
from benchmarks.options import Device, Limit, Out, Quick, Rounds, Threads, device_of
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import forward
from gradcam_kit import METHODS, ScoreCAM
from gradcam_kit.demo import HELD_OUT, Batch, collate, draw, load_demo_model
from gradcam_kit.methods.arithmetic.channels import Ranking
from gradcam_kit.types import LayerChoice

Case = dict[str, str | int]

LAYER, EARLIER = "layer4", "layer3"
SHARES: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
CHANCE = "chance"
EXACT = "Score-CAM with all channels"
FIRST_SEED = HELD_OUT + 1000
"""Seed of the first image. The images were not used in training, and are not among the bundled ones."""

CHUNK = 32
"""Number of rows in one forward pass of a perturbation method."""


def run(
    device: Device = "auto",
    images: Annotated[int, typer.Option(help="number of generated images", min=1)] = 32,
    rounds: Rounds = 3,
    limit: Limit = 30.0,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Measure the time of each method and the share of its map on the object; Score-CAM also with fewer channels."""
    device = device_of(device)
    methods, shares, layers = list(METHODS), SHARES, [LAYER, EARLIER]
    if quick:
        images, rounds = 2, 1
        methods, shares, layers = ["grad-cam", "random-cam", "attention-rollout"], SHARES[2:3], [LAYER]
    rows = attempt({"what": "all"}, partial(_rows, device, images, methods, shares, layers, rounds, limit))
    settings = {"seed": FIRST_SEED, "images": images, "rounds": rounds, "limit": limit, "model": "demo"}
    record("quality", device, rows, threads=threads, out=out, quick=quick, **settings)


def _rows(
    device: str,
    images: int,
    methods: Sequence[str],
    shares: Sequence[float],
    layers: Sequence[str],
    rounds: int,
    limit: float,
) -> Iterator[Row]:
    model = load_demo_model().to(device)
    drawn = collate([draw(seed) for seed in range(FIRST_SEED, FIRST_SEED + images)])
    batch = Batch(*(part.to(device) for part in drawn))
    case: Case = {"what": "method", "method": "all"}
    yield from attempt(case, partial(method_rows, model, batch, methods, rounds, limit))
    for layer in layers:
        case = {"what": "score-cam", "layer": layer, "rule": "all"}
        yield from attempt(case, partial(channel_rows, model, batch.images, layer, shares, rounds, limit))


def method_rows(model: nn.Module, batch: Batch, methods: Sequence[str], rounds: int, limit: float) -> Iterator[Row]:
    """Yield time and quality of each method for predicted classes, at the last stage or at its own layers."""

    def work(name: str) -> Work:
        layers = LAYER if METHODS[name].layer_choice is LayerChoice.LAST else None
        return lambda: METHODS[name](model, layers, batch_size=CHUNK)(batch.images)

    works = {FORWARD: forward(model, batch.images), **{name: work(name) for name in methods}}
    runs = interleave(works, rounds, limit)
    for name in methods:
        case: Case = {"what": "method", "method": name}
        yield from attempt(case, partial(_method_row, case, runs[name], runs[FORWARD], batch))
    chance = Figure.of(batch.masks.float().mean((1, 2)).tolist())
    yield Row({"what": "method", "method": CHANCE}, {"energy": chance}, note="the object's share of the picture")


def _method_row(case: Case, timed: Run, baseline: Run, batch: Batch) -> list[Row]:
    if skipped := timed.skipped or baseline.skipped:
        return [Row(case, skipped=skipped)]
    shares = energies(timed.result, batch.masks)
    empty = len(batch.images) - len(shares)
    figures = {
        "seconds_per_image": Figure.of(seconds / len(batch.images) for seconds in timed.times),
        "ratio": timed.over(baseline),
        "passes": timed.passes(baseline),
        **({"energy": Figure.of(shares)} if shares else {}),
    }
    note = f"empty heatmaps, which have no share on the object: {empty} of {len(batch.images)}" if empty else ""
    return [Row(case, figures, beside=FORWARD, note=note)]


def energies(heatmaps: Tensor, masks: Tensor) -> list[float]:
    """Return the share of each nonempty heatmap that lies on the object."""
    inside, whole = (heatmaps * masks).sum((1, 2)), heatmaps.sum((1, 2))
    shares: list[float] = (inside / whole)[whole > 0].tolist()
    return shares


def channel_rows(
    model: nn.Module, images: Tensor, layer: str, shares: Sequence[float], rounds: int, limit: float
) -> Iterator[Row]:
    """Yield the time of Score-CAM with a share of its channels, and the rank correlation with its exact maps."""

    def work(**options: Any) -> Work:
        cam = ScoreCAM(model, layer, batch_size=CHUNK, **options)
        return lambda: cam.explain(images).saliency[layer]

    chosen = {(rule, share): work(channels=share, ranking=rule) for rule in get_args(Ranking) for share in shares}
    named = {f"{rule} {share}": one for (rule, share), one in chosen.items()}
    runs = interleave({FORWARD: forward(model, images), EXACT: work(), **named}, rounds, limit)
    for rule, share in chosen:
        case: Case = {"what": "score-cam", "layer": layer, "rule": rule, "channels": str(share)}
        yield from attempt(case, partial(_channel_row, case, runs[f"{rule} {share}"], runs, len(images)))


def _channel_row(case: Case, timed: Run, runs: Mapping[str, Run], count: int) -> list[Row]:
    exact, plain = runs[EXACT], runs[FORWARD]
    if skipped := timed.skipped or exact.skipped or plain.skipped:
        return [Row(case, skipped=skipped)]
    correlations = rank_correlations(timed.result, exact.result)
    same = count - len(correlations)
    figures = {
        "seconds_per_image": Figure.of(seconds / count for seconds in timed.times),
        "ratio": timed.over(exact),
        "passes": timed.passes(plain),
        **({"correlation": Figure.of(correlations)} if correlations else {}),
    }
    note = f"images whose map does not vary, which have no correlation: {same} of {count}" if same else ""
    return [Row(case, figures, beside=EXACT, note=note)]


def rank_correlations(maps: Tensor, others: Tensor) -> list[float]:
    """Return Spearman's correlation of each pair of maps, for images where both maps vary."""
    ranks = [rankdata(one.flatten(1).numpy(force=True), axis=1) for one in (maps, others)]
    first, second = (one - one.mean(1, keepdims=True) for one in ranks)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    varies = norms > 0
    correlations: list[float] = ((first * second).sum(1)[varies] / norms[varies]).tolist()
    return correlations

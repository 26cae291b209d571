"""Inject a pattern into one of several random walks, and test whether maps show when it occurs, and in which walk.

The data are built like those in the paper on dCAM (Boniol et al., SIGMOD 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.ground_truth.scoring import DRAWS, Found, Plan, Subject, Test, found_of, score_all
from benchmarks.ground_truth.training import accuracy, train
from gradcam_kit import DCAM, GradCAM
from gradcam_kit.methods.dcam import cube
from gradcam_kit.metrics import BASELINES, pixel_average_precision

_DIMENSIONS, _TIMES, _LENGTH = 4, 64, 12
_TRAINING, _STEPS, _SERIES, _ORDERS = 1200, 700, 20, 40


def walks(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random walks `(n, D, t)` of standard deviation 1, labels, and masks of the pattern that class 1 has."""
    generator = torch.Generator().manual_seed(seed)
    series = torch.randn(n, _DIMENSIONS, _TIMES, generator=generator).cumsum(2)
    series = (series - series.mean(2, keepdim=True)) / series.std(2, keepdim=True)
    labels = torch.arange(n) % 2
    masks = torch.zeros(n, _DIMENSIONS, _TIMES, dtype=torch.bool)
    burst = torch.sin(torch.arange(_LENGTH) * torch.pi / 2)
    for i in range(n):
        dimension = int(torch.randint(_DIMENSIONS, (), generator=generator))
        start = int(torch.randint(_TIMES - _LENGTH, (), generator=generator))
        if labels[i]:
            series[i, dimension, start : start + _LENGTH] += 1.5 * burst
            masks[i, dimension, start : start + _LENGTH] = True
    return series, labels, masks


def over_time() -> nn.Module:
    """Return a network for signals; its last maps are the output of module "3"."""
    return nn.Sequential(
        nn.Conv1d(_DIMENSIONS, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(16, 24, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def over_cubes() -> nn.Module:
    """Return a network for cubes, which does not mix their rows; its last maps are the output of module "3"."""
    return nn.Sequential(
        nn.Conv2d(_DIMENSIONS, 16, (1, 5), padding=(0, 2)),
        nn.ReLU(),
        nn.Conv2d(16, 24, (1, 5), padding=(0, 2)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def when(plan: Plan) -> dict[str, Found]:
    """Score all methods on a network for signals, and dCAM, which also finds the dimension, on a network for cubes."""
    steps = plan.count(_STEPS)
    series, labels, _ = walks(_TRAINING, plan.seed + 1)
    signals = train(over_time, series, labels, steps=steps, seed=plan.seed)
    own = torch.arange(_DIMENSIONS)[None]
    cubes = train(over_cubes, cube(series, own).flatten(0, 1), labels, steps=steps, seed=plan.seed)
    tests, truth, masks = walks(2 * plan.count(_SERIES), plan.seed + 2)
    over_all = accuracy(signals, tests, truth), accuracy(cubes, cube(tests, own).flatten(0, 1), truth)
    tests, masks = tests[truth == 1], masks[truth == 1]
    ones = torch.ones(len(tests)).long()
    found = score_all(Subject(signals, "3", tests, ones, masks.any(1)), plan)
    found.notes["accuracy"] = over_all[0]
    # a map over time is the same for every dimension
    flat = GradCAM(signals, "3")(tests, 1)[:, None].expand(-1, _DIMENSIONS, -1)
    maps = {"dcam": [DCAM(cubes, "3", permutations=_ORDERS, seed=plan.seed)(tests, 1)], "grad-cam": [flat]}
    for name, baseline in BASELINES.items():
        drawn = range(DRAWS.get(name, 1))
        maps[name] = [baseline(tests[:, None], plan.seed + draw, torch.arange(len(tests))) for draw in drawn]
    which = found_of({row: [pixel_average_precision(one, masks).values for one in own] for row, own in maps.items()})
    which.notes |= {"grad-cam": "the same map in every dimension, as any method over time would give"}
    which.notes["accuracy"] = min(over_all)
    return {"series, when": found, "series, which": which}


TESTS = (
    Test(
        "series",
        "A pattern injected into one of four random walks: when does it occur, and (dCAM) in which walk",
        "when: share of the map in the pattern's time; which: average precision over dimensions and times",
        when,
        has_networks=True,
    ),
)

"""Options and inputs that metrics refuse, and what becomes of their defaults where images are small."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import pytest
import torch
from metric_cases import CORNER, MAP, RIGHT, masks, standard_case
from models import build, images
from torch import nn

from gradcam_kit import metrics
from gradcam_kit.draws import uniform
from gradcam_kit.errors import InputError, LayerNotFoundError, OptionError, ShapeError
from gradcam_kit.metrics import METRICS, MetricInput
from gradcam_kit.metrics.accumulation import MaxBoxAccuracy, MeanOverImages, PixelAveragePrecision, PointingGame

VOLUMES = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
ONE = torch.tensor([0])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("insertion", {"kernel": 4}, "kernel is 4; expected an odd number"),
        ("insertion", {"sigma": 0.0}, "sigma is 0.0; expected a finite number above 0"),
        ("deletion", {"baseline": float("nan")}, "baseline is nan; expected a finite number"),
        ("road-morf", {"tolerance": -1.0}, "tolerance is -1.0; expected a finite number above 0"),
        ("road-lerf", {"percentages": [float("nan")]}, "a percentage is nan; expected a finite number"),
        ("infidelity", {"patch": 14}, "patch is 14, which covers images of 13 x 14 positions"),
        ("top-k-intersection", {"k": 183}, "k is 183, but the maps have only 182 positions"),
        ("box-accuracy", {"overlap": 1.5}, r"overlap is 1.5; expected an intersection over union in \(0, 1\]"),
        ("box-accuracy", {"overlap": 0.0}, "overlap is 0.0; expected"),
    ],
)
def test_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    metric = METRICS[name]
    with standard_case() as case, pytest.raises(OptionError, match=said):
        unwrap(metric.function)(**{**{field: getattr(case, field) for field in metric.uses}, **options})


@pytest.mark.parametrize(
    ("found", "error", "said"),
    [
        (lambda: metrics.grid_pointing(MAP, torch.tensor([4])), OptionError, "cells go from 4 to 4; .* from 0 to 3"),
        (lambda: metrics.grid_pointing(MAP, torch.tensor([-1])), OptionError, "cells go from -1 to -1"),
        (
            lambda: unwrap(metrics.grid_pointing)(MAP, torch.tensor([0, 1])),
            ShapeError,
            r"cells have shape \(2,\); .*\(1,\)",
        ),
        (lambda: unwrap(metrics.grid_pointing)(MAP, torch.tensor([0.0])), InputError, "cells are torch.float32"),
        (lambda: metrics.grid_pointing(MAP, ONE, (0, 2)), OptionError, "a side of the grid is 0"),
        (lambda: unwrap(metrics.bounding_boxes)(VOLUMES > 0.5), ShapeError, r"masks \(n, h, w\); got \(1, 3, 4, 5\)"),
        (lambda: unwrap(metrics.bounding_boxes)(RIGHT[0]), ShapeError, r"need masks \(n, h, w\); got \(2, 2\)"),
        (lambda: unwrap(uniform)((2,), ONE, 1.5), OptionError, "seed is 1.5; expected an int"),
        (lambda: unwrap(uniform)((2,), ONE, True), OptionError, "seed is True; expected an int"),
        (
            lambda: metrics.box_overlaps(MAP, torch.full((1, 1, 4), torch.nan)),
            InputError,
            "boxes contain NaN; expected x0",
        ),
        (
            lambda: unwrap(metrics.pixel_histograms)(MAP, RIGHT, torch.zeros(1, 3, 2, dtype=torch.bool)),
            ShapeError,
            "ignored pixels have shape",
        ),
        (lambda: unwrap(metrics.pixel_histograms)(MAP, RIGHT.float()), InputError, "masks are torch.float32"),
        (lambda: MetricInput(MAP * 1.0000002, images(1, size=(2, 2))), OptionError, r"from 0 to 1\.0000002; expected"),
    ],
)
def test_inputs_are_refused(found: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        found()


def test_a_method_that_cannot_be_called_is_refused() -> None:
    with standard_case() as case:
        object.__setattr__(case, "explain", 3)
        with pytest.raises(InputError, match=r"explain is an? int; expected a callable from images to heatmaps"):
            unwrap(MetricInput.__post_init__)(case)


@pytest.mark.parametrize("name", [name for name in METRICS if {"rescore", "predicts"} & {*METRICS[name].needs}])
def test_plain_functions_refuse_images_that_are_not_those_of_the_scores(name: str) -> None:
    metric = METRICS[name]
    with standard_case() as case:
        fields = {field: getattr(case, field) for field in metric.uses if field not in ("masked_scores",)}
        with pytest.raises(InputError, match="rescore was made for other images"):
            metric.function(**{**fields, "images": case.images.flip(0)})


def test_defaults_of_small_images() -> None:
    """One patch, or more positions than there are, would give every map the same number."""
    with standard_case() as case:
        found = METRICS["infidelity"](case, samples=8)
        assert found.settings["patch"] == "16, or a quarter of the longer side for images below 64"
        assert torch.equal(found.values, METRICS["infidelity"](case, samples=8, patch=3).values)
        assert (found.values > 1e-9).all()
    found = metrics.top_k_intersection(case.heatmaps, masks())
    assert (
        found.settings["k"] == "1000, or a tenth of the positions for maps below 10000 positions"
    )  # the same for all sizes
    assert torch.equal(found.values, metrics.top_k_intersection(case.heatmaps, masks(), k=18).values)
    large, objects = torch.rand(1, 100, 100), torch.rand(1, 100, 100) > 0.5
    found = metrics.top_k_intersection(large, objects)
    assert torch.equal(found.values, metrics.top_k_intersection(large, objects, k=1000).values)
    x, maps = images(1, size=(64, 20)), torch.rand(1, 64, 20)

    def mean(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return rows.flatten(1).mean(1)

    patched = metrics.infidelity(maps, x, mean, samples=2)
    assert torch.equal(patched.values, metrics.infidelity(maps, x, mean, samples=2, patch=16).values)


@pytest.mark.parametrize("name", ["infidelity", "top-k-intersection"])
def test_defaults_that_follow_the_size_are_one_setting(name: str) -> None:
    over_all = MeanOverImages(name)
    for side in (20, 30):
        x, objects = images(2, size=(side, side)), torch.ones(2, side, side, dtype=torch.bool)

        def mean(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return rows.flatten(1).mean(1)

        over_all.update(MetricInput(torch.rand(2, side, side), x, mean, masks=objects))
    assert over_all.compute()["count"] == 4


def test_predictions_that_are_not_known_have_not_changed() -> None:
    x = images(2, size=(8, 8))
    maps = torch.rand(2, 8, 8)

    def predicts(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.tensor([torch.nan, 1.0])[index]

    found = metrics.sensitivity_max(maps, x, lambda rows: maps, predicts=predicts, samples=3)
    assert found.details["predictions_changed"].tolist() == [0, 0]


def test_what_numbers_over_a_data_set_depend_on() -> None:
    assert PointingGame(2, tolerance=15.0).settings == {"tolerance": 15}
    assert PixelAveragePrecision(bins=10).settings == {"bins": 10}
    assert MaxBoxAccuracy(overlaps=(0.3, 0.5), thresholds=(0.2,)).settings == {
        "overlaps": (0.3, 0.5),
        "regions": "largest contour",
        "thresholds": (0.2,),
        "threshold_chosen": "on the same images",
    }
    with pytest.raises(OptionError, match="overlap is 2"):
        MaxBoxAccuracy(overlaps=(2.0,))
    assert metrics.grid_pointing(torch.rand(1, 4, 6), ONE, (2, 3)).settings == {"grid": (2, 3)}


@pytest.mark.parametrize(
    ("classes", "error", "said"),
    [
        (torch.tensor([0, 3]), OptionError, "classes go from 0 to 3; expected numbers from 0 to 2"),
        (torch.tensor([-1, 0]), OptionError, "classes go from -1 to 0"),
        (torch.tensor([0]), ShapeError, r"classes have shape \(1,\); expected \(2,\)"),
        (torch.tensor([0.0, 1.0]), InputError, "classes are torch.float32"),
    ],
)
def test_a_batch_that_is_refused_leaves_no_trace_in_the_pointing_game(
    classes: torch.Tensor, error: type[Exception], said: str
) -> None:
    maps, objects = torch.cat([MAP, MAP]), torch.cat([RIGHT, CORNER])
    metric = PointingGame(3)
    with pytest.raises(error, match=said):
        unwrap(PointingGame.update)(metric, maps, objects, classes)
    metric.update(maps, objects, torch.tensor([0, 1], dtype=torch.int32))
    found = metric.compute()
    assert found["per_class"][:2].tolist() == [1, 0]
    assert (int(found["count"]), float(found["mean"])) == (2, 0.5)


def test_boxes_outside_of_the_image_are_no_objects() -> None:
    maps = torch.cat([MAP, MAP, MAP, MAP])
    boxes = torch.tensor([[[1.0, 0, 2, 2]], [[2.0, 0, 4, 2]], [[-3.0, 0, 0, 2]], [[1.0, -1, 2, 2]]])
    metric = MaxBoxAccuracy(thresholds=(0.4,))
    metric.update(maps, boxes=boxes)
    found = metric.compute()
    assert (int(found["empty_gt"]), int(found["count"])) == (2, 2)


def test_layers_that_take_no_part_cannot_be_randomized() -> None:
    model = build(
        lambda m, x: m.fc(m.conv(x).mean((2, 3))), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2), idle=nn.Linear(2, 2)
    )
    x = images(1)

    def explain(rows: torch.Tensor) -> torch.Tensor:
        return model.conv(rows).mean(1).detach()

    for layers, error, said in (
        (["idle", "fc"], OptionError, "layers take no part in the pass: idle; expected some of conv, fc"),
        ([], OptionError, "layers is empty; expected some of"),
        (["cnv"], LayerNotFoundError, "no layer 'cnv'"),
    ):
        before = [one.clone() for one in model.state_dict().values()]
        with pytest.raises(error, match=said):
            metrics.parameter_randomization(model, explain, x, layers=layers)
        assert all(map(torch.equal, before, model.state_dict().values()))
    assert metrics.parameter_randomization(model, explain, x).unused == ("idle",)


def test_seeds_of_64_bits_are_different() -> None:
    seeds = (1, 1 + 2**32, 1 + 2**33, -1, 2**32 - 1)
    assert len({tuple(uniform((4,), torch.tensor([7]), seed)[0].tolist()) for seed in seeds}) == len(seeds)

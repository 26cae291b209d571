"""Mistakes that people make in measuring: the error says what to do instead, and leaves nothing behind."""

from __future__ import annotations

import re
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from metric_cases import CORNER, IMAGE, MAP, RIGHT, SIZE, masks, standard_case
from models import images, tiny

from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import InputError, OptionError, ShapeError, UnknownNameError
from gradcam_kit.metrics import BASELINES, METRICS, Metric, MetricInput, grid_pointing, iou, mass_accuracy, road_morf
from gradcam_kit.metrics.accumulation import MeanOverImages, PointingGame
from gradcam_kit.metrics.checks import check_heatmaps, check_masks

X = images(size=SIZE)
HEATMAPS = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))


def unchecked_case(heatmaps: Any, x: Any, rescore: Any = None, **fields: Any) -> MetricInput:
    """A case as it is made outside of the tests, where nothing checks the kinds of its fields before it does."""
    case = object.__new__(MetricInput)
    none = dict.fromkeys(("predicts", "masks", "explain", "identities"))
    for name, value in {**none, "seed": 0, "heatmaps": heatmaps, "images": x, "rescore": rescore, **fields}.items():
        object.__setattr__(case, name, value)
    unwrap(MetricInput.__post_init__)(case)
    return case


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 1, *SIZE), "expected the same: pass masks[:, 0]"),
        ((3, *SIZE, 1), "expected the same: pass masks[..., 0]"),
        ((1, 3, *SIZE), "expected the same: pass masks[0]"),
        ((3, 2, *SIZE), "expected the same"),
        ((2, *SIZE), "expected the same"),
        (
            (3, 14, 13),
            "expected the same. Resize the masks yourself, because the right interpolation depends on their values",
        ),
        ((3, 1, 26, 28), "expected the same"),
    ],
)
def test_masks_of_another_shape(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"masks have shape {shape}, heatmaps (3, 13, 14); {said}") + "$"):
        MetricInput(HEATMAPS, X, masks=torch.ones(shape, dtype=torch.bool))


def test_an_axis_too_many_of_what_metrics_take_besides_masks() -> None:
    with pytest.raises(ShapeError, match=r"heatmaps \(3, 1, 13, 14\); expected the same: pass heatmaps\[:, 0\]$"):
        unwrap(check_masks)(masks(), HEATMAPS[:, None])
    with pytest.raises(ShapeError, match=r"ignored pixels have .* the same: pass ignored\[:, 0\]$"):
        unwrap(check_masks)(masks()[:, None], HEATMAPS, "ignored pixels")


def test_heatmaps_of_one_target_lose_its_axis_and_those_of_several_are_folded() -> None:
    with pytest.raises(ShapeError, match=r"need \(3, 13, 14\); pass heatmaps\[:, 0\]$"):
        MetricInput(HEATMAPS[:, None], X)
    with pytest.raises(ShapeError, match=r"need \(3, 13, 14\); fold the axis of several targets into the batch$"):
        MetricInput(HEATMAPS[:, None].expand(-1, 2, *SIZE), X)
    with pytest.raises(ShapeError, match=r"need \(3, 13, 14\)$"):
        MetricInput(HEATMAPS[0], X)


def test_methods_and_explanations_are_no_heatmaps() -> None:
    cam = GradCAM(tiny(), "relu1")
    explanation = cam.explain(X)
    for given, said in (
        (cam, r"heatmaps is a GradCAM; expected a tensor, such as cam\(images\)$"),
        (explanation, "heatmaps is an Explanation; expected a tensor, such as explanation.heatmaps$"),
    ):
        with pytest.raises(InputError, match=said):
            unchecked_case(given, X)
        with pytest.raises(InputError, match=said):
            unwrap(check_heatmaps)(given, X)
        with pytest.raises(InputError, match=said):
            unwrap(mass_accuracy)(given, masks())


def test_a_model_does_not_score_changed_images() -> None:
    model = tiny()
    said = r"{} is a TinyCNN; expected .*, such as {} from `with .*\.rescoring\(model, images\) as rescore:`$"
    with pytest.raises(InputError, match=said.format("rescore", "rescore")):
        unchecked_case(HEATMAPS, X, model)
    with pytest.raises(InputError, match=said.format("predicts", r"rescore\.predicts")):
        unchecked_case(HEATMAPS, X, predicts=model)
    with pytest.raises(InputError, match="rescore is a _GeneratorContextManager; expected"):
        unchecked_case(HEATMAPS, X, rescoring(model, X))
    with pytest.raises(InputError, match="rescore is a Tensor; expected"):
        unchecked_case(HEATMAPS, X, HEATMAPS)
    for name in ("average-drop", "deletion"):
        with pytest.raises(InputError, match=said.format("rescore", "rescore")):
            unwrap(METRICS[name].function)(HEATMAPS, X, model)
    with pytest.raises(InputError, match=said.format("predicts", r"rescore\.predicts")):
        unwrap(road_morf)(HEATMAPS, X, model)
    with pytest.raises(InputError, match=said.format("predicts", r"rescore\.predicts")):
        unwrap(METRICS["sensitivity-max"].function)(HEATMAPS, X, lambda rows: HEATMAPS, predicts=model)


MAPS, OBJECTS = torch.cat([MAP, MAP]), torch.cat([RIGHT, CORNER])


@pytest.mark.parametrize(
    "classes",
    [
        [0, 1],
        (0, 1),
        np.array([0, 1]),
        np.array([0, 1], dtype=np.uint16),
        *(torch.tensor([0, 1], dtype=kind) for kind in (torch.uint8, torch.int16, torch.uint16, torch.uint64)),
    ],
    ids=lambda classes: f"{type(classes).__name__} {getattr(classes, 'dtype', '')}",
)
def test_classes_of_the_pointing_game_in_any_integers(classes: Any) -> None:
    metric = PointingGame(300)  # more than a byte can hold
    metric.update(MAPS, OBJECTS, classes)
    found = metric.compute()
    assert found["per_class"][:2].tolist() == [1, 0]
    assert (int(found["classes"]), int(found["count"]), float(found["mean"])) == (2, 2, 0.5)


@pytest.mark.parametrize(
    ("classes", "error", "said"),
    [
        (["cat", "dog"], InputError, r"list of str; .*: \[class_names\.index\(name\) for name in classes\]$"),
        (np.array(["cat", "dog"]), InputError, "classes is a ndarray; .* in classes]$"),
        ([0, None], InputError, "classes is a list of NoneType, int; expected integers, one number per image$"),
        ([[0], [1, 2]], InputError, "classes is a list of list; expected integers"),
        ({0, 1}, InputError, "classes is a set; expected integers"),
        ([0.0, 1.0], InputError, "classes are torch.float64; expected integers"),
        ([True, False], InputError, "classes are torch.bool; expected integers"),
        (torch.ones(2) * 1j, InputError, "classes are torch.complex64; expected integers"),
        (1, ShapeError, r"classes have shape \(\); expected \(2,\)"),
        ([], ShapeError, r"classes have shape \(0,\); expected \(2,\)"),
        ([[0, 1]], ShapeError, r"classes have shape \(1, 2\); expected \(2,\)"),
        ([0, 3], OptionError, "classes go from 0 to 3; expected numbers from 0 to 2"),
        (torch.tensor([0, 3], dtype=torch.uint16), OptionError, "classes go from 0 to 3"),
    ],
    ids=str,
)
def test_wrong_classes_add_nothing_to_the_pointing_game(classes: Any, error: type[Exception], said: str) -> None:
    metric = PointingGame(3)
    with pytest.raises(error, match=said):
        unwrap(PointingGame.update)(metric, MAPS, OBJECTS, classes)
    assert not any(state.any() for state in (metric.hits, metric.seen, metric.counts))


def test_the_mean_over_images_takes_a_case_and_no_tensors() -> None:
    metric = MeanOverImages("iou")
    shown = r"update\(MetricInput\(heatmaps, images, masks=masks\)\)$"
    for given, kinds in (((MAP, RIGHT), "a Tensor, a Tensor"), ((MAP,), "a Tensor")):
        with pytest.raises(InputError, match=f"update got {kinds}; expected one case.*{shown}"):
            unwrap(MeanOverImages.update)(metric, *given)
    with pytest.raises(
        InputError, match=r"update\(MetricInput\(heatmaps, images, rescore=rescore, explain=explain\)\)$"
    ):
        unwrap(MeanOverImages.update)(MeanOverImages("adcc"), MAP)
    case = MetricInput(MAP, IMAGE, masks=RIGHT)
    with pytest.raises(InputError, match="update got a MetricInput, a Tensor; expected one case"):
        unwrap(MeanOverImages.update)(metric, case, RIGHT)
    assert not metric.counts.any()
    metric.update(case)
    assert metric.compute()["count"] == 1


UNKNOWN = {
    "deletion": ("stepps", "no option 'stepps'; its options are steps.*; did you mean 'steps'"),
    "road-morf": ("percentage", "options are percentages, noise, tolerance, batch_size; did you mean 'percentages'"),
    "road-combined": ("nois", "did you mean 'noise'"),
    "arcc": ("batchsize", "its options are percentages, noise, tolerance, batch_size; did you mean 'batch_size'"),
    "iou": ("seed", r"its options are threshold; pass MetricInput\(\.\.\., seed=\.\.\.\)$"),
    "entropy": ("zzz", "the metric 'entropy' has no option 'zzz'; it has none$"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_options_of_a_metric(name: str) -> None:
    option, said = UNKNOWN[name]
    with standard_case() as case, pytest.raises(OptionError, match=said):
        METRICS[name](case, **{option: 4})
    with pytest.raises(OptionError, match=said):
        MeanOverImages(name, **{option: 4})


def test_unknown_options_of_a_metric_of_ones_own() -> None:
    with pytest.raises(OptionError, match="no option 'thresh'; its options are threshold; did you mean"):
        Metric("loose", iou, "higher", options={"thresh": 0.2})(MetricInput(MAP, IMAGE, masks=RIGHT))

    def any_options(heatmaps: torch.Tensor, **options: Any) -> Any:
        assert options == {"flavor": 2}
        return METRICS["entropy"].function(heatmaps)

    assert Metric("own", any_options, "")(MetricInput(MAP, IMAGE), flavor=2).ok.all()


@pytest.mark.parametrize("name", ["road-morf", "road-lerf", "road-combined", "arcc"])
def test_options_of_road_are_those_of_its_curve(name: str) -> None:
    options = {"percentages": (30.0,), "noise": 0.5, "tolerance": 0.01}
    with standard_case() as case:
        found = METRICS[name](case, **options, batch_size=2)
    assert {key: found.settings[key] for key in options} == options


def test_unknown_baselines() -> None:
    with pytest.raises(UnknownNameError, match=r"^there is no baseline 'rand'; did you mean 'random'\?$"):
        BASELINES["rand"]
    assert list(BASELINES) == ["random", "ones", "center", "edges"]


def test_the_mean_over_images_shows_what_it_is_the_mean_of() -> None:
    assert repr(MeanOverImages("mass-accuracy")) == "MeanOverImages('mass-accuracy')"
    assert repr(MeanOverImages("iou", threshold=0.2)) == "MeanOverImages('iou', threshold=0.2)"
    assert repr(MeanOverImages(Metric("cells", grid_pointing, "higher"))) == "MeanOverImages('cells')"

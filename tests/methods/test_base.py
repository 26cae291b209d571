"""What all methods share: options that can be seen, maps that are checked, one exploring pass, what is shown."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from evidence import counted
from models import images, seeded, tiny
from torch import Tensor, nn

from gradcam_kit import (
    METHODS,
    SSCAM,
    BaseCAM,
    FinerCAM,
    GradCAM,
    LayerCAM,
    RefineCAM,
    ViTReciproCAM,
    WinsorCAM,
    explain_all,
)
from gradcam_kit.errors import CaptureError, LayerNotFoundError, ShapeError
from gradcam_kit.types import Evidence, LayerCapture

INPUT = images(3, size=(8, 8))
COMMON = {
    "reshape": None,
    "fusion": "mean",
    "normalize": "minmax",
    "batch_size": 64,
    "keep_modes": False,
    "image_input": None,
    "gradient_rule": "exact",
}


# Options


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_in_the_signature(name: str) -> None:
    shown = inspect.signature(METHODS[name]).parameters
    assert list(shown)[:2] == ["model", "target_layers"]
    own = {
        "balanced-cam": {"fusion": "sum", "gradient_rule": "balanced"},
        "layer-cam": {"fusion": "max"},
        "refine-cam": {"fusion": "product"},
    }.get(name, {})
    for option, default in {**COMMON, **own}.items():
        assert shown[option].default == default
    assert all(one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD) for one in shown.values())
    with pytest.raises(TypeError, match="colour"):
        METHODS[name](tiny(), colour=1)


def test_options_of_a_base_are_shown_too() -> None:
    assert inspect.signature(SSCAM).parameters["samples"].default == 35
    assert inspect.signature(SSCAM).parameters["weighting"].default == "softmax"
    assert inspect.signature(RefineCAM).parameters["variant"].default == "paper"


def test_options_of_a_users_own_method_are_shown() -> None:
    class Own(BaseCAM):
        def __init__(self, *args: Any, sharpness: float = 2.0, **options: Any) -> None:
            super().__init__(*args, **options)
            self.sharpness = sharpness

    assert list(inspect.signature(Own).parameters) == ["model", "target_layers", "sharpness", *COMMON]
    assert repr(Own(tiny(), "relu2", sharpness=3.0, batch_size=2)) == (
        "Own(TinyCNN, layers=['relu2'], sharpness=3.0, batch_size=2)"
    )


def test_a_method_shows_its_model_layers_and_options() -> None:
    assert repr(GradCAM(tiny())) == "GradCAM(TinyCNN, automatic layer)"
    assert repr(LayerCAM(tiny(), ["relu1", "relu2"], normalize="max")) == (
        "LayerCAM(TinyCNN, layers=['relu1', 'relu2'], normalize='max')"
    )


# Maps of a user's own method


def method_with(**functions: Any) -> type[BaseCAM]:
    return type("Own", (BaseCAM,), functions)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda g: g.mean((2, 3)), r"^Own.weights returned shape \(3, 6\); .* \(3, 6, 1, 1\).*\(3, 6, 4, 4\)"),
        (lambda g: g.mean((0, 2, 3), keepdim=True), r"shape \(1, 6, 1, 1\)"),
        (lambda g: g[:, :5], r"shape \(3, 5, 4, 4\)"),
        (lambda g: g[:, :, :2], r"shape \(3, 6, 2, 4\)"),
        (lambda g: None, "returned a NoneType"),
        (lambda g: [1, 2], "returned a list"),
    ],
)
def test_weights_of_the_wrong_shape_are_named(weights: Any, message: str) -> None:
    own = method_with(weights=lambda self, layer: weights(layer.gradients))
    with pytest.raises(ShapeError, match=message):
        own(tiny(), "relu2")(INPUT)


@pytest.mark.parametrize("kept", [(2, 3), (2,), (3,), ()])
def test_weights_of_channels_and_of_positions_are_taken(kept: tuple[int, ...]) -> None:
    def weights(self: BaseCAM, layer: LayerCapture) -> Tensor:
        return layer.gradients.mean(kept, keepdim=True) if kept else layer.gradients

    assert method_with(weights=weights)(tiny(), "relu2")(INPUT).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        (
            lambda a: a,
            r"^Own returned shape \(3, 6, 4, 4\) as the maps of .*'relu2'; expected \(3, height, width\)",
        ),
        (lambda a: a.sum((1, 2, 3)), r"shape \(3,\)"),
        (lambda a: a.sum((0, 1)), r"shape \(4, 4\)"),
        (lambda a: a[:2].sum(1), r"shape \(2, 4, 4\)"),
    ],
)
def test_maps_of_the_wrong_shape_are_named(saliency: Any, message: str) -> None:
    own = method_with(saliency=lambda self, layer: saliency(layer.activations))
    with pytest.raises(ShapeError, match=message):
        own(tiny(), "relu2")(INPUT)


def test_maps_of_several_targets_are_checked_too() -> None:
    with pytest.raises(ShapeError, match=r"^Own returned a NoneType as the maps of layer 'relu2'"):
        method_with(saliencies=lambda self, layer: None)(tiny(), "relu2")(INPUT)
    own = method_with(saliencies=lambda self, layer: layer.activations.sum(1))
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\).*expected \(3, 2, height, width\).* for each sample and target"):
        own(tiny(), "relu2")(INPUT, [[0, 1]] * 3)


def test_a_method_needs_weights_or_saliency() -> None:
    with pytest.raises(NotImplementedError, match=r"Own must implement weights\(layer\) or saliency\(layer\)"):
        method_with()(tiny(), "relu2")(INPUT)
    with pytest.raises(CaptureError, match=r"set needs = Evidence\.GRADIENTS"):
        method_with(needs=Evidence.NONE, weights=GradCAM.weights)(tiny(), "relu2")(INPUT)


# Layers


def test_a_layer_with_one_position_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    assert not GradCAM(model, "1")(INPUT).any()
    assert "target layer ('1') has a single position" in caplog.text
    assert "images of 8 x 8; choose a layer before the pooling" in caplog.text
    caplog.clear()
    for layers in ("0", ["0", "1"]):
        assert GradCAM(model, layers)(INPUT).any()
    one = seeded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    assert GradCAM(one, "0")(INPUT[:, :, :1, :1]).shape == (3, 1, 1)  # images of one position have no other place
    assert not caplog.text


def test_all_automatic_layers_come_from_one_exploring_pass() -> None:
    model = tiny()
    with counted(model) as rows:
        explain_all([GradCAM(model), RefineCAM(model), WinsorCAM(model), GradCAM(model)], INPUT)
    assert rows == [1, 3]
    with counted(model) as rows:
        explain_all([GradCAM(model, "relu2"), FinerCAM(model, "relu2")], INPUT)
    assert rows == [3, 3]  # two ways to score


def test_a_method_for_transformers_says_that_there_is_none() -> None:
    with pytest.raises(LayerNotFoundError, match=r"^TinyCNN has no transformer block.*candidates: .*relu2 \(6, 4, 4\)"):
        ViTReciproCAM(tiny())(INPUT)


# What is shown


def test_an_explanation_says_how_many_maps_are_empty() -> None:
    model = tiny()
    found = GradCAM(model, "relu2").explain(INPUT, 1)
    assert repr(found) == "Explanation(3 maps, layers=['relu2'], targets=[1, 1, 1])" or found.is_empty.any()
    assert "heatmaps" not in repr(found)
    assert callable(found.__dict__["heatmaps"])  # showing it computes nothing
    with torch.no_grad():
        model.fc.weight.zero_()
    empty = GradCAM(model, "relu2").explain(INPUT, [[0, 1]] * 3)
    assert repr(empty) == (
        "Explanation(3 x 2 maps, layers=['relu2'], targets=[[0, 1], [0, 1], [0, 1]], "
        "6 of 6 maps without positive evidence)"
    )
    assert "6 of 6 maps without positive evidence" in empty._repr_html_()
    assert "of 3 maps without" not in found._repr_html_() or found.is_empty.any()


@pytest.mark.parametrize("order", ["model first", "default first"])
def test_any_constructor_that_python_takes(order: str) -> None:
    if order == "model first":

        class Own(BaseCAM):
            def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
                super().__init__(model, *args, **options)
    else:

        class Own(BaseCAM):  # type: ignore[no-redef]
            def __init__(self, model: Any = None, *args: Any, **options: Any) -> None:
                super().__init__(model, *args, **options)

    assert Own(tiny(), "relu2").target_layers is not None


def test_methods_of_any_iterable_and_maps_changed_before_heatmaps_are_read() -> None:
    cams = {"one": GradCAM(tiny(), "relu2")}
    (heatmaps,) = explain_all(cams.values(), INPUT)
    explained = cams["one"].explain(INPUT)
    explained.saliency["relu2"].zero_()
    assert torch.equal(explained.heatmaps, heatmaps)

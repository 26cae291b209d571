"""`cam.check`: what it warns of, and that it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from evidence import quick, subject
from models import TinyViT, build, images, seeded, tiny
from representatives import each
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import METHODS, BaseCAM, EigenCAM, EigenSmooth, GradCAM, GuidedBackprop, LayerCAM
from gradcam_kit.targets import LogitDifference


class Brightness(BaseCAM):
    """A map that shows the image."""

    def saliency(self, layer) -> Tensor:
        return layer.images.mean(1)


def test_a_sound_map_passes_and_prints_its_figures() -> None:
    model, batch = tiny(), images(4)
    with unchanged(model, batch):
        found = GradCAM(model, "relu2").check(batch)
    assert found.passed
    assert found.warnings == ()
    assert found.layers == ("relu2",)
    assert found.parameters.shape == found.classes.shape == found.is_empty.shape == (4,)
    assert float(found.classes.mean()) < 0.9
    assert not found.is_unreached.any()
    assert repr(found).startswith("Sanity check of GradCAM at relu2: passed\n")
    assert f"rank correlation {found.parameters.mean():+.2f} (n = 4)" in repr(found)
    assert "<table>" in found._repr_html_()


def test_the_same_seed_gives_the_same_figures() -> None:
    cam, batch = GradCAM(tiny(), "relu2"), images(3)
    first, again, other = (cam.check(batch, seed=seed).parameters for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_map_of_the_image_is_insensitive_to_everything() -> None:
    found = Brightness(tiny(), "relu2").check(images(3))
    assert not found.passed
    assert torch.allclose(found.parameters, torch.ones(3).double())
    assert "hardly change when all parameters are random (rank correlation 1.00)" in found.warnings[0]
    assert "same for another class (rank correlation 1.00)" in found.warnings[1]
    assert "2 warnings" in repr(found)
    assert "<li>" in found._repr_html_()


def test_a_map_without_a_class_says_so() -> None:
    found = EigenCAM(tiny(), "relu2").check(images(3))
    assert torch.allclose(found.classes, torch.ones(3).double())
    assert any("same for another class" in warning for warning in found.warnings)


def test_empty_maps_are_counted() -> None:
    model = tiny()
    with torch.no_grad():
        model.fc.weight[3] = -model.fc.weight.abs().sum()
    found = GradCAM(model, "relu2").check(images(3), 3)
    assert found.is_empty.all()
    assert any("3 of 3 maps are empty" in warning for warning in found.warnings)


def test_a_layer_without_gradient_to_its_positions_is_found() -> None:
    saturated = build(
        lambda m, x: m.fc(m.layer(x).relu().mean((2, 3)) * 0),
        layer=nn.Conv2d(3, 6, 3, padding=1), fc=nn.Linear(6, 5),
    )  # fmt: skip
    found = GradCAM(saturated, "layer").check(images(2))
    assert found.is_unreached.all()
    assert any("no gradient reaches the positions of layer for 2 of 2 maps" in w for w in found.warnings)
    # Where the pass itself refuses, the check says why instead of raising.
    vit = seeded(TinyViT())
    found = GradCAM(vit, "blocks.1").check(images(2))
    assert not found.passed
    assert "no gradient reaches the patch tokens" in found.warnings[0]
    assert "blocks.1" in repr(found)
    found = EigenCAM(vit, "blocks.1").check(images(2))
    assert found.is_unreached.all()
    assert any("no gradient reaches the patch tokens" in warning for warning in found.warnings)


@pytest.mark.parametrize("targets", [1, [[0, 1], [2, 3]], LogitDifference([0, 1]), lambda logits: logits[:, 1]])
def test_targets_of_any_kind(targets) -> None:
    batch = images(2)
    found = GradCAM(tiny(), None).check(batch, targets)
    per_image = 2 if isinstance(targets, list) else 1
    assert found.parameters.shape == (2 * per_image,)
    assert torch.isfinite(found.parameters).all()
    assert torch.isnan(found.classes).all() == callable(targets)


def test_methods_without_layers_and_with_several() -> None:
    model, batch = tiny(), images(2)
    assert torch.isfinite(GuidedBackprop(model).check(batch).parameters).all()
    found = LayerCAM(model, ["relu1", "relu2"]).check(batch)
    assert found.layers == ("relu1", "relu2")
    assert torch.isfinite(found.parameters).all()


def test_the_layer_is_not_chosen_again_on_the_random_model() -> None:
    model = build(
        lambda m, x: m.fc(m.first(x).relu().mean((2, 3))) + m.off(m.second(x).relu().mean((2, 3))),
        first=nn.Conv2d(3, 6, 3, padding=1), second=nn.Conv2d(3, 6, 3, stride=2, padding=1),
        fc=nn.Linear(6, 5), off=nn.Linear(6, 5),
    )  # fmt: skip
    with torch.no_grad():
        model.off.weight.zero_()  # no gradient reaches the second, until its weights are random
    found = GradCAM(model).check(images(2), lambda logits: logits[:, 1])
    assert found.layers == ("first",)
    assert torch.isfinite(found.parameters).all()


@pytest.mark.parametrize("name", each())
def test_every_method_can_be_checked(name: str) -> None:
    model, layer = subject(name)
    batch = images(2, size=(8, 8))
    with unchanged(model, batch):
        found = quick(name)(model, layer).check(batch)
    assert found.method == METHODS[name].__name__
    assert found.parameters.shape == found.classes.shape == (2,)
    assert (torch.allclose(found.classes, torch.ones(2).double())) == METHODS[name].class_agnostic


def test_methods_around_methods_can_be_checked() -> None:
    found = EigenSmooth(GradCAM(tiny(), "relu2")).check(images(2))
    assert found.layers == ("relu2",)
    assert torch.isfinite(found.parameters).all()


def test_one_output_has_no_other_class() -> None:
    found = GradCAM(tiny(classes=1), "relu2").check(images(2))
    assert torch.isnan(found.classes).all()
    assert "not defined" in repr(found)


def test_a_head_of_zeros_is_named_as_the_cause() -> None:
    model = tiny()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    found = GradCAM(model, "relu2").check(images(3))
    assert found.warnings[0].startswith("all classes have the same score for every image")
    assert found.is_unreached.all()

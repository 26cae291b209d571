"""The warning of empty maps names the cause that is there."""

from __future__ import annotations

import re

import pytest
import torch
from models import build, conv_model, images, tiny
from torch import nn

from gradcam_kit import EigenCAM, GradCAM, HiResCAM, RefineCAM
from gradcam_kit.targets import Negative, SegmentationTarget

INPUT = images(2)


def untrained() -> nn.Module:
    model = tiny()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    return model


def off() -> nn.Module:
    model = tiny()
    nn.init.constant_(model.stage2.bias, -100)
    return model


def against() -> nn.Module:
    model = tiny()
    with torch.no_grad():
        model.fc.weight.abs_().neg_()
    return model


def saturated() -> nn.Module:
    return conv_model(output=lambda logits: (1000 * logits).clamp(-1, 1), behind=lambda y: y.relu() + 10)


CAUSES = {
    "head of zeros": (untrained, GradCAM, "relu2", None, "does not depend on the image, as with a head of zeros"),
    "dead units": (off, GradCAM, "relu2", 0, "the activations of relu2 are zero everywhere"),
    "dead units, no gradients": (off, EigenCAM, "relu2", 0, "the activations of relu2 are zero everywhere"),
    "against": (against, GradCAM, "relu2", 0, r"all evidence is against the explained score.*targets=Negative"),
    "against, by position": (against, HiResCAM, "relu2", [0, 1], "all evidence is against"),
    "saturated": (saturated, GradCAM, "layer", 0, "no gradient reaches the layers: the score is saturated"),
}


@pytest.mark.parametrize("kind", CAUSES)
def test_the_cause_that_is_there_is_named(kind, caplog):
    make, method, layer, target, message = CAUSES[kind]
    cam = method(make(), layer)
    heatmaps = cam(INPUT, target)
    assert not heatmaps.any()
    [record] = caplog.records
    assert record.getMessage().startswith(f"{method.__name__} found no positive evidence at {layer} in any image")
    assert re.search(message, cam.explain(INPUT, target).empty_because)
    assert cam.explain(INPUT, target).empty_because in record.getMessage()


def test_what_the_warning_advises_helps(caplog):
    assert GradCAM(against(), "relu2")(INPUT, Negative(0)).any()
    assert not caplog.records


def test_a_layer_without_evidence_empties_a_product(caplog):
    model = against()
    RefineCAM(model, ["relu1", "relu2"])(INPUT, 0)
    [record] = caplog.records
    assert "all evidence is against" in record.getMessage() or "empties the product" in record.getMessage()


def test_maps_with_evidence_have_no_cause(caplog):
    found = GradCAM(tiny(), "relu2").explain(INPUT)
    assert found.empty_because == ""
    assert not caplog.records


def dense() -> nn.Module:
    """A segmentation network of three classes that predicts class 1 everywhere."""
    model = build(lambda m, x: m.head(m.layer(x).relu()), layer=nn.Conv2d(3, 5, 3, padding=1), head=nn.Conv2d(5, 3, 1))
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    return model


@pytest.mark.parametrize("method", [GradCAM, HiResCAM])
@pytest.mark.parametrize(
    ("mask", "classes", "message"),
    [
        (None, 2, "class 2 is predicted at no position; give a region"),
        (None, [0, 2], "the classes are predicted at no position; give a region"),
        (torch.zeros(8, 8), 1, "the region of the target is empty"),
    ],
    ids=["one class", "two classes", "a mask of zeros"],
)
def test_a_region_without_positions_is_named(method, mask, classes, message, caplog):
    assert message in method(dense(), "layer").explain(INPUT, SegmentationTarget(mask, classes)).empty_because


def test_a_region_with_positions_is_not_blamed(caplog):
    found = GradCAM(dense(), "layer").explain(INPUT, SegmentationTarget(None, 1))
    assert "region" not in found.empty_because

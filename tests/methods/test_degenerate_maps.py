"""Layers without structure, without activations and with nothing but negative evidence, for every method."""

from __future__ import annotations

import pytest
import torch
from comparisons import FEWER, is_for_transformers
from models import images as draw_images
from models import tiny
from representatives import ON_CLASSES, crossed
from torch import Tensor, nn

from gradcam_kit import METHODS, GradCAM

ON_CNNS = [name for name in ON_CLASSES if not is_for_transformers(name) and name != "rise"]  # it sees no layer
EACH_FOR_CNNS = pytest.mark.parametrize("name", ON_CNNS)

FLAT = {
    "balanced-cam": "the average of the positions is subtracted",
    "fem": "no position of a constant channel is above the others",
    "kpca-cam": "the kernel matrix is centered",
    "recipro-cam": "the smallest score is subtracted",
    "full-grad": "psi of equal terms is zero",
    "random-cam": "the draw that is used has a negative sum",
    "expected-grad-cam": "a constant image is its own baseline",
    "group-cam": "a constant image equals its blurred version",
    "sess": "the map of every window is min-max normalized",
}
"""Methods without evidence in a constant layer."""

NEVER_NEGATIVE = {
    **dict.fromkeys(("eigen-cam", "eigen-grad-cam", "seg-eigen-cam"), "the sign rule"),
    **dict.fromkeys(("fem", "lafam", "score-cam", "ss-cam", "is-cam"), "weights are not negative"),
    **dict.fromkeys(("grad-cam++", "refine-cam", "smooth-grad-cam++", "layer-cam"), "only positive gradients count"),
    **dict.fromkeys(("guided-backprop", "guided-grad-cam"), "negative gradients are dropped"),
    **dict.fromkeys(
        ("grad-cam-elementwise", "integrated-grad-cam", "group-cam", "sess"), "the formula ends with a ReLU"
    ),
    "full-grad": "psi takes absolute values",
    "recipro-cam": "the smallest score is subtracted",
}
"""Methods whose map cannot be negative at a layer with A >= 0 and negative gradients."""

BOTH_SIGNS = {
    "balanced-cam": "the average of the positions is subtracted",
    "kpca-cam": "the kernel matrix is centered",
    "expected-grad-cam": "in places the baseline has more",
}
"""Methods whose map compares positions with each other or with a baseline."""


def explain(name, model, images, **options):
    return METHODS[name](model, "block2", **FEWER.get(name, {}), **options).explain(images, 0)


def signed(found) -> Tensor:
    """The signed map of the only layer."""
    (saliency,) = found.saliency.values()
    return saliency


def flat_model(weight: float, head: float) -> nn.Module:
    """Every layer is constant over the positions of a constant image, and every channel is the same up to scale."""
    model = nn.Sequential()
    model.add_module("block2", nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(4, 2))
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        model.block2[0].weight.copy_(weight * scales.view(4, 1, 1, 1).expand(4, 3, 1, 1))
        model.block2[0].bias.zero_()
        model.fc.weight.copy_(head * torch.stack([scales, -scales]))
        model.fc.bias.zero_()
    return model.double().eval()


@EACH_FOR_CNNS
def test_constant_positive_map(name):
    images = torch.ones(2, 3, 5, 6, dtype=torch.float64)
    for how, expected in (("minmax", 0.0), ("max", 1.0)):
        found = explain(name, flat_model(1, 1), images, normalize=how)
        assert torch.equal(found.heatmaps, torch.full((2, 5, 6), 0.0 if name in FLAT else expected))
        assert found.is_empty.tolist() == [name in FLAT] * 2


@pytest.mark.parametrize(("name", "how"), crossed(ON_CNNS, ["minmax", "max", "none"], first=ON_CNNS))
def test_all_zero_layer(name, how):
    found = explain(name, flat_model(-1, 1), torch.ones(2, 3, 5, 6, dtype=torch.float64), normalize=how)
    assert not signed(found).any()
    assert not found.heatmaps.any()
    assert found.is_empty.all()


@EACH_FOR_CNNS
def test_negative_evidence_is_no_evidence(name):
    images = draw_images(2, size=(5, 6)).double().abs() + 0.1
    found = explain(name, flat_model(1, -1), images)
    if name in NEVER_NEGATIVE:
        assert signed(found).amin() >= 0
    elif name in BOTH_SIGNS:
        assert signed(found).amin() < 0 < signed(found).amax()
    else:
        assert signed(found).amax() < 0
        assert not found.heatmaps.any()
        assert found.is_empty.all()


def test_a_call_says_that_all_of_its_maps_are_empty(caplog: pytest.LogCaptureFixture) -> None:
    cam, x = GradCAM(tiny(), "relu2"), draw_images(3)
    cam(x)
    assert not caplog.records
    assert not cam(x, lambda logits: 0 * logits[:, 0]).any()
    assert "GradCAM found no positive evidence at relu2 in any image" in caplog.text

"""EinsumCAM without a head: the gradient of the layer's output with respect to the layer's own weight."""

from __future__ import annotations

import copy

import pytest
import reference as ref
import torch
from cases import assert_same
from models import images as draw_images
from models import seeded
from networks import blocks, torchvision_model
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import EinsumCAM
from gradcam_kit.errors import CaptureError
from gradcam_kit.types import LayerCapture


def behind(layer: nn.Module, channels: int = 6) -> nn.Module:
    """A layer followed by two linear layers, so that no head is found."""
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, channels, 3, padding=1))
    model.add_module("layer", layer)
    model.add_module("pool", nn.AdaptiveAvgPool2d(2))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(24, 4), nn.Tanh(), nn.Linear(4, 5)))
    return seeded(model).double()


def by_loop(model: nn.Module, images: Tensor, weight: nn.Parameter, axis: int = 0) -> Tensor:
    """The transcription, with an ordinary backward pass for each sample."""
    maps = []
    for image in images:
        output = model.layer(model.stem(image[None]))
        gradient = torch.autograd.grad(output.sum(), weight)[0]
        maps.append(torch.from_numpy(ref.einsum_cam_without_head(output[0], gradient, axis)))
    return torch.stack(maps)


LAYERS = {
    "dense and ReLU": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True)), "0.weight", 0),
    "transposed and ReLU": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 6, 2, stride=2), nn.ReLU()), "0.weight", 1),
    "transposed to other channels": (
        lambda: nn.Sequential(nn.Conv2d(6, 3, 1), nn.ConvTranspose2d(3, 6, 3), nn.Tanh()),
        "1.weight",
        1,
    ),
    "grouped": (lambda: nn.Conv2d(6, 6, 3, groups=2), "weight", 0),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), "weight", 0),
    "batch norm": (lambda: nn.BatchNorm2d(6), "weight", 0),
    "group norm": (lambda: nn.GroupNorm(3, 6), "weight", 0),
    "conv, norm, ReLU": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), "1.weight", 0),
    "pointwise and GELU": (lambda: nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.GELU()), "0.weight", 0),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_own_weight_gradient_of_each_sample(kind):
    build, name, axis = LAYERS[kind]
    model, images = behind(build()), draw_images(3).double()
    weight = model.layer.get_parameter(name)
    expected = by_loop(model, images, weight, axis)
    found = EinsumCAM(model, "layer").explain(images, 2)
    assert_same(found.saliency["layer"], expected)
    # the plain gradient of the batch would mix the samples
    output = model.layer(model.stem(images))
    mixed = torch.autograd.grad(output.sum(), weight)[0].movedim(axis, 0).reshape(6, -1).mean(1)
    mixed = torch.einsum("nkhw,k->nhw", output.detach(), mixed)
    assert (found.saliency["layer"] - mixed).abs().max() > 0.1 * expected.abs().max()


def test_grouped_convolution_is_equal_within_a_group():
    model, images = behind(nn.Conv2d(6, 6, 3, groups=2)), draw_images(2).double()

    class Weights(EinsumCAM):
        def weights(self, layer: LayerCapture) -> Tensor:
            self.seen = super().weights(layer)
            return self.seen

    cam = Weights(model, "layer")
    cam.explain(images, 0)
    first, second = cam.seen.flatten(1).split(3, dim=1)
    assert_close(first, first[:, :1].expand(-1, 3))
    assert_close(second, second[:, :1].expand(-1, 3))
    assert ((first - second).abs() > 1e-3 * first.abs()).all()


def test_fallback_is_the_same_for_every_class_and_leaves_the_model_alone():
    model, images = behind(LAYERS["conv, norm, ReLU"][0]()), draw_images(2).double()
    model.layer[0].weight.requires_grad_(False)
    model.layer[1].weight.grad = torch.full((6,), 3.0, dtype=torch.float64)
    several = EinsumCAM(model, "layer").explain(images, [[0, 4], [1, 2]])
    assert several.saliency["layer"].shape[:2] == (2, 2)
    for j in range(2):
        assert torch.equal(
            several.saliency["layer"][:, j], EinsumCAM(model, "layer").explain(images, 3).saliency["layer"]
        )
    assert model.layer[1].weight.grad.tolist() == [3.0] * 6
    assert model.layer[0].bias.grad is None
    assert [parameter.requires_grad for parameter in model.layer.parameters()] == [False, True, True, True]


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 1), nn.ConvTranspose2d(6, 6, 3)], ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_bare_dense_layers_are_errors(layer, scale):
    model = behind(copy.deepcopy(layer))
    with torch.no_grad():
        model.stem.weight.mul_(scale)
        model.stem.bias.mul_(scale)
    with pytest.raises(CaptureError, match=r"same weight.*nonlinearity"):
        EinsumCAM(model, "layer").explain(draw_images(2).double(), 0)


def test_layers_without_a_weight_of_their_own_are_errors():
    model = behind(nn.ReLU())
    with pytest.raises(CaptureError, match=r"'layer' has no weight.*6 channels"):
        EinsumCAM(model, "layer").explain(draw_images(2).double(), 0)


def test_head_comes_before_the_own_weight():
    model, images = blocks(), draw_images(2).double()
    with_head = EinsumCAM(model, "block2").explain(images, [1, 3]).saliency["block2"]
    fallback = EinsumCAM(copy.deepcopy(model).requires_grad_(False), "block2")  # frozen: found by running, not by flags
    assert torch.equal(fallback.explain(images, [1, 3]).saliency["block2"], with_head)
    model.fc = nn.Sequential(model.fc, nn.Softplus())
    without = EinsumCAM(model, "block2").explain(images, [1, 3]).saliency["block2"]
    assert (without - with_head).abs().max() > 0.1 * with_head.abs().max()


def test_densenet_features_are_explained_by_their_norm():
    model, images = torchvision_model("densenet121"), draw_images(2, size=(64, 64)).double()
    norm, entered = model.features.norm5, []
    handle = norm.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0].detach()))
    found = EinsumCAM(model, "features").explain(images, 0)
    handle.remove()
    # the output of a norm is linear in its weight, whose gradient is the sum of the normalized input
    weights = torch.nn.functional.batch_norm(entered[0], norm.running_mean, norm.running_var).sum((2, 3))
    activations = norm(entered[0]).detach()
    assert_same(found.saliency["features"], torch.einsum("nkhw,nk->nhw", activations, weights))

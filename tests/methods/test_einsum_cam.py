"""EinsumCAM: which heads count, what they give, and the fallback to gradients of the layer's own weight."""

from __future__ import annotations

import copy

import pytest
import reference as ref
import torch
from cases import assert_same
from models import images as draw_images
from models import seeded
from networks import torchvision_model
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import EinsumCAM, GradCAM
from gradcam_kit.methods import BaseCAM
from gradcam_kit.types import Evidence, Head, LayerCapture


class HeadFinder(BaseCAM):
    """Keeps the head that was found."""

    needs = Evidence.HEAD

    def saliency(self, layer: LayerCapture) -> Tensor:
        self.found = layer.head
        return layer.activations.sum(1)


def find(model: nn.Module, layer: str, images: Tensor) -> Head | None:
    finder = HeadFinder(model, layer)
    finder.explain(images, 0)
    return finder.found


# Which heads count

ELIGIBLE = {
    "resnet18": ("layer4", "fc", 64),
    "resnext50_32x4d": ("layer4", "fc", 64),
    "efficientnet_b0": ("features", "classifier.1", 64),
    "efficientnet_v2_s": ("features", "classifier.1", 64),
    "mobilenet_v2": ("features", "classifier.1", 64),
    "mnasnet0_5": ("layers", "classifier.1", 64),
    "shufflenet_v2_x0_5": ("conv5", "fc", 64),
    "regnet_y_400mf": ("trunk_output", "fc", 64),
    "inception_v3": ("Mixed_7c", "fc", 75),
    "swin_t": ("permute", "head", 64),
    "swin_v2_t": ("permute", "head", 64),
}
INELIGIBLE = {
    "densenet121": ("features", "a functional ReLU follows"),
    "convnext_tiny": ("features", "the norm follows the pooling"),
    "vgg11": ("features", "the head has two layers"),
    "mobilenet_v3_small": ("features", "the head has two layers"),
    "squeezenet1_1": ("classifier.1", "a ReLU stands before the pooling"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's own words about the initialization of Inception
@pytest.mark.parametrize("family", ELIGIBLE)
def test_families_with_a_usable_head(family):
    layer, head, size = ELIGIBLE[family]
    model, images = torchvision_model(family).float(), draw_images(2, size=(size, size))
    found = find(model, layer, images)
    module = model.get_submodule(head)
    assert torch.equal(found.weight, module.weight)
    assert torch.equal(found.bias, module.bias)
    explanation = EinsumCAM(model, layer).explain(images, [[0, 1, 2]] * 2)
    sums = explanation.saliency[layer].sum((2, 3))
    logits = explanation.output[:, :3] - module.bias[:3].detach()
    assert_close(sums, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    assert logits.any()


@pytest.mark.parametrize("family", INELIGIBLE)
def test_families_without_one(family):
    model, images = torchvision_model(family).float(), draw_images(2, size=(64, 64))
    assert find(model, INELIGIBLE[family][0], images) is None


class Pooled(nn.Module):
    """Mean pooling and a linear head, with a change somewhere between and behind them."""

    def __init__(self, before=None, after=None, classes: int = 5, scale: float = 1.0) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.fc = nn.Linear(6, classes)
        self.before, self.after, self.scale = before or nn.Identity(), after or (lambda logits: logits), scale

    def forward(self, x: Tensor) -> Tensor:
        maps = self.block(x)
        return self.after(self.fc(self.scale * self.before(maps).mean((2, 3))))


def pooled(*args, bias: bool = True, **options) -> nn.Module:
    model = seeded(Pooled(*args, **options)).double()
    with torch.no_grad():
        model.fc.bias.mul_(float(bias))
    return model


def test_a_head_must_reproduce_every_logit_of_every_sample():
    images = draw_images(4).double()
    assert find(pooled(), "block", images).weight.shape == (5, 6)
    for change in (
        lambda logits: logits / 2,
        lambda logits: logits.softmax(1),
        lambda logits: logits * torch.tensor([1.0, 1, 1, 1, 1.001], dtype=torch.float64),  # one class
        lambda logits: logits + torch.arange(5) * 0.01,
        lambda logits: logits.flip(1),
    ):
        assert find(pooled(after=change), "block", images) is None
    # one sample of the batch is clipped
    largest = pooled()(images).detach().amax(1).sort().values
    clipped = pooled(after=lambda logits: logits.clamp(max=float(largest[-2:].mean())))
    assert find(clipped, "block", images) is None
    few = [i for i in range(4) if float(pooled()(images)[i].detach().max()) < float(largest[-1])]
    assert find(clipped, "block", images[few]) is not None


class Clipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.3 * float(x.max()))


def scaled(scale: float, *args, **options) -> nn.Module:
    """Pooled with activations of about this size."""
    model = pooled(*args, **options)
    with torch.no_grad():
        model.block[0].weight.mul_(scale)
        model.block[0].bias.mul_(scale)
    return model


@pytest.mark.parametrize("scale", [1e-14, 1e-7, 1e7])
def test_tolerance_is_relative(scale):
    images = draw_images(2).double()
    assert find(scaled(scale, bias=False), "block", images) is not None
    assert find(scaled(scale, Clipped(), bias=False), "block", images) is None


def test_a_bias_may_round_away_a_little_of_the_evidence():
    images = draw_images(2)
    for scale, eligible in ((1e-2, True), (1e-4, True), (1e-8, False), (1e-14, False)):
        assert (find(scaled(scale).float(), "block", images) is not None) is eligible
        assert find(scaled(scale, Clipped()).float(), "block", images) is None


@pytest.mark.parametrize("constant", [7.0, -1e3])
def test_a_constant_added_to_all_logits_keeps_the_head(constant):
    images = draw_images(2).double()
    plain = EinsumCAM(pooled(), "block").explain(images, 1).saliency["block"]
    shifted = pooled(after=lambda logits: logits + constant)
    assert_same(EinsumCAM(shifted, "block").explain(images, 1).saliency["block"], plain)
    centered = pooled(after=lambda logits: logits - logits.mean(1, keepdim=True))
    assert find(centered, "block", images) is not None
    assert find(pooled(after=lambda logits: logits + constant, classes=1), "block", images) is None


def test_head_that_is_a_convolution_and_head_without_bias():
    for bias in (True, False):
        model = nn.Sequential()
        model.add_module("block", nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()))
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("head", nn.Conv2d(6, 5, 1, bias=bias))
        model.add_module("flatten", nn.Flatten())
        seeded(model).double()
        found = find(model, "block", draw_images(2).double())
        assert torch.equal(found.weight, model.head.weight.flatten(1))
        assert (found.bias is not None) is bias
        saliency = EinsumCAM(model, "block").explain(draw_images(2).double(), 3).saliency["block"]
        assert_same(saliency, GradCAM(model, "block").explain(draw_images(2).double(), 3).saliency["block"])


def test_of_two_layers_of_one_shape_the_working_one_is_found():
    model = pooled()
    model.decoy = copy.deepcopy(model.fc)
    model._modules = {"decoy": model.decoy, **model._modules}
    with torch.no_grad():
        model.decoy.weight.mul_(2)
    assert next(iter(model.children())) is model.decoy
    assert torch.equal(find(model, "block", draw_images(2).double()).weight, model.fc.weight)


def test_half_precision_head():
    model, images = torchvision_model("resnet18").to(torch.bfloat16), draw_images(2, size=(64, 64)).to(torch.bfloat16)
    found = find(model, "layer4", images)
    assert found.weight.dtype == torch.float32
    assert torch.equal(found.weight, model.fc.weight.float())


# What they give


def test_all_classes_from_one_forward_pass():
    model, images = pooled(classes=40), draw_images(3).double()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = EinsumCAM(model, "block").explain(images, torch.arange(40).expand(3, 40))
    handle.remove()
    assert calls == [False]
    assert found.heatmaps.shape == (3, 40, 16, 16)
    activations = model.block(images).detach()
    expected = torch.einsum("nkhw,ck->nchw", activations, model.fc.weight.detach()) / activations[0, 0].numel()
    assert_same(found.saliency["block"], expected)
    gradients = GradCAM(model, "block").explain(images, torch.arange(40).expand(3, 40)).saliency["block"]
    assert_same(gradients, expected)


@pytest.mark.parametrize(
    "target",
    [
        lambda logits: logits.softmax(1)[:, 2],
        lambda logits: (logits**2).sum(1),
        lambda logits: logits[:, 0] - logits[:, 3],
        lambda logits: logits.logsumexp(1),
    ],
)
def test_functions_of_the_logits(target):
    model, images = pooled(), draw_images(3).double()
    found = EinsumCAM(model, "block").explain(images, target)
    assert_same(found.saliency["block"], GradCAM(model, "block").explain(images, target).saliency["block"])
    for i, image in enumerate(images):
        logits = model(image[None]).detach().requires_grad_()
        gradient = torch.autograd.grad(target(logits).sum(), logits)[0][0]
        expected = ref.einsum_cam(model.block(image[None])[0], model.fc.weight, gradient)
        assert_same(found.saliency["block"][i], expected)

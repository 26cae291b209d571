"""Methods over several layers, inputs or passes: their default layers, completeness, and changed copies of a model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference as ref
import torch
from cases import EARLIER, LAST, assert_same
from models import build, seeded
from models import images as draw_images
from networks import blocks, flat64, resnet18, signal
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import METHODS
from gradcam_kit.errors import InputError, OptionError
from gradcam_kit.methods import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


class Terms(BaseCAM):
    """The terms of FullGrad before they are post-processed."""

    needs = Evidence.GRADIENTS | Evidence.BIASES
    layer_choice = LayerChoice.INPUT

    def saliency(self, layer: LayerCapture) -> Tensor:
        products = [layer.gradients * layer.activations, *layer.bias_gradients]
        self.total = sum(product.flatten(1).sum(1) for product in products)
        self.count = len(products)
        return products[0].sum(1)


@pytest.mark.parametrize(
    ("build", "size", "biases"), [(blocks, 16, 3), (flat64, 16, 3), (signal, 16, 3), (resnet18, 32, 21)]
)
def test_full_gradients_are_complete(build, size, biases):
    cam = Terms(build())
    found = cam.explain(draw_images(2, size=(size,) * (1 if build is signal else 2)).double(), [1, 3])
    assert cam.count == 1 + biases
    assert_same(cam.total, found.scores)


def test_full_gradients_of_modules_that_run_out_of_order():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(4, 5), nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x).relu()).relu().mean((2, 3)))

    cam = Terms(seeded(Backwards()).double())
    found = cam.explain(draw_images(2).double(), [1, 3])
    assert_same(cam.total, found.scores)


def test_winsor_cam_over_all_convolutions():
    found = METHODS["winsor-cam"](LAST.model).explain(LAST.images, LAST.targets)
    assert found.layers == ("block1.0", "block2.0")
    for percentile in (0.0, 50.0, 100.0):
        for importance in ("mean", "max", "l2"):
            cam = METHODS["winsor-cam"](LAST.model, percentile=percentile, importance=importance)
            heatmaps = cam(LAST.images, LAST.targets)
            for index in LAST.samples:
                sample = LAST.samples[index]
                modules = [sample.module(layer) for layer in found.layers]
                pairs = sample.outputs_and_gradients(modules)
                saliencies = [ref.grad_cam(*pair) for pair in pairs]
                gradients = [gradient for _, gradient in pairs]
                expected = ref.winsor_cam(saliencies, gradients, LAST.size, percentile, importance)
                expected = torch.from_numpy(ref.normalize_minmax(expected))
                assert_close(heatmaps[index].double(), expected, rtol=0, atol=1e-6)


def test_winsor_cam_takes_other_fusions():
    mean, largest, product = (
        METHODS["winsor-cam"](LAST.model, normalize="none", importance="l2", fusion=fusion)
        for fusion in ("mean", "max", "product")
    )
    maps = [torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    importance = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])]  # winsorized: 0.1 and 1; 1 and 0
    first, second = torch.stack([0.1 * maps[0][0], maps[0][1]]), torch.stack([maps[1][0], 0 * maps[1][1]])
    assert_close(mean.fuse(maps, importance), first + second)
    assert_close(largest.fuse(maps, importance), torch.maximum(first, second))
    assert_close(product.fuse(maps, importance), first * second)


def test_winsorize_by_hand():
    from gradcam_kit.methods.winsor_cam import winsorize

    # the percentile 2/3 of 1, 2, 3, 99 is 3, so 1, 2, 3, 3 are rescaled; then one positive value, equal ones, none
    rows = torch.tensor([[0.0, 1, 2, 3, 99], [0, 0, 4, 0, 0], [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]], dtype=torch.float64)
    found = winsorize(rows, 100 * 2 / 3)
    expected = [[0, 0.1, 0.55, 1, 1], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
    for percentile in (0.0, 30.0, 80.0, 100.0):
        drawn = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(min=0)
        expected = np.array([ref.winsorize(row.tolist(), percentile) for row in drawn])
        assert_close(winsorize(drawn, percentile), torch.from_numpy(expected))


def test_refine_cam_is_a_product():
    found = METHODS["refine-cam"](LAST.model, ["block1", "block2"])(LAST.images, LAST.targets)
    for (i, j), sample in LAST.samples.items():
        pairs = sample.outputs_and_gradients([sample.module("block1"), sample.module("block2")])
        expected = ref.refine_cam(*zip(*pairs, strict=True), LAST.size)
        assert_close(found[i, j].double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


class GuidedReLU(nn.Module):
    """A ReLU whose backward pass drops negative gradients too."""

    def forward(self, x: Tensor) -> Tensor:
        result = x.clamp(min=0)
        if result.requires_grad:
            result.register_hook(lambda gradient: gradient.clamp(min=0))
        return result


def test_guided_backprop_equals_a_changed_copy_of_the_model():
    model, images = resnet18(), draw_images(2, size=(32, 32)).double()
    changed = copy.deepcopy(model)
    for module in changed.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, GuidedReLU())
    leaf = images.clone().requires_grad_()
    expected = torch.autograd.grad(changed(leaf)[range(2), [3, 8]].sum(), leaf)[0]
    found = METHODS["guided-backprop"](model).explain(images, [3, 8])
    assert_same(next(iter(found.saliency.values())), expected.sum(1))
    assert all(type(module) is not GuidedReLU for module in model.modules())


def test_guided_backprop_counts_functional_rectifiers():
    class Functional(nn.Module):
        def __init__(self, kind) -> None:
            super().__init__()
            self.stage1, self.stage2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
            self.kind = kind

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.kind(self.stage2(self.kind(self.stage1(x)))).mean((2, 3)))

    model = seeded(Functional(torch.relu)).double()
    modular = copy.deepcopy(model)
    modular.kind = nn.ReLU(inplace=True)
    images = draw_images(2).double()
    maps = [METHODS["guided-backprop"](one).explain(images, 1).saliency for one in (model, modular)]
    assert_same(*(next(iter(own.values())) for own in maps))
    for kind in (nn.functional.gelu, torch.tanh, nn.functional.hardswish, nn.functional.hardtanh):
        with pytest.raises(InputError, match="ReLU networks"):
            METHODS["guided-backprop"](seeded(Functional(kind)).double()).explain(images, 1)


@pytest.mark.parametrize("kind", ["relu6", "functional relu6", "prelu", "leaky"])
def test_guided_backprop_takes_rectifiers_with_a_ceiling_or_a_slope(kind):
    units = {
        "relu6": nn.ReLU6(inplace=True),
        "functional relu6": nn.functional.relu6,
        "prelu": nn.PReLU(4),
        "leaky": nn.LeakyReLU(0.2, inplace=True),
    }
    act = units[kind]
    first, second, fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
    run = lambda m, x: m.fc(act(m.second(act(m.first(x)))).mean((2, 3)))  # noqa: E731
    parts = {"act": act} if isinstance(act, nn.Module) else {}
    model, images = build(run, first=first, second=second, fc=fc, **parts).double(), 8 * draw_images(2).double()
    low, high = first(images), second(act(first(images)))
    assert (high > 6).any() or kind not in ("relu6", "functional relu6")

    def slope(x: Tensor) -> Tensor:  # the derivative of the unit, by hand
        below = act.weight.view(1, -1, 1, 1) if kind == "prelu" else 0.2 if kind == "leaky" else 0.0
        inside = x < 6 if "relu6" in kind else torch.ones_like(x, dtype=torch.bool)
        return torch.where(x > 0, torch.ones_like(x), torch.ones_like(x) * below) * inside

    with torch.no_grad():
        gradient = (fc.weight[1].view(1, 4, 1, 1) / high[0, 0].numel()).expand_as(high)
        for entered, layer in ((high, second), (low, first)):
            gradient = nn.functional.conv_transpose2d(gradient.clamp(min=0) * slope(entered), layer.weight)
    found = METHODS["guided-backprop"](model).explain(images, 1).saliency
    assert_same(next(iter(found.values())), gradient.sum(1))


def test_smoothing_takes_clean_activations_and_no_last_sample():
    # Without noise all samples are the clean pass, and the method is Grad-CAM++.
    for case in (EARLIER, LAST):
        plain = METHODS["grad-cam++"](case.model, case.layer).explain(case.images, case.targets)
        still = METHODS["smooth-grad-cam++"](case.model, case.layer, std=0.0).explain(case.images, case.targets)
        assert_same(still.saliency[case.layer], plain.saliency[case.layer])


def test_the_class_is_fixed_on_the_clean_image():
    model = blocks()
    images = draw_images(4).double()
    predicted = model(images).argmax(1)
    noisy = METHODS["smooth-grad-cam++"](model, "block1", std=5.0)
    assert torch.equal(noisy.explain(images).targets, predicted)
    assert torch.equal(noisy(images), noisy(images, predicted))
    path = METHODS["integrated-grad-cam"](model, "block1")
    assert torch.equal(path(images), path(images, predicted))


def test_integrated_grad_cam_of_one_step_is_grad_cam_of_the_difference():
    found = METHODS["integrated-grad-cam"](EARLIER.model, "block1", steps=1).explain(EARLIER.images, EARLIER.targets)
    start = EARLIER.model.block1(torch.zeros_like(EARLIER.images)).detach()
    for index, sample in EARLIER.samples.items():
        expected = ref.relu(ref.grad_cam(sample.activations - start[index[0]], sample.gradients))
        assert_same(found.saliency["block1"][index], expected)


def test_expected_grad_cam_sums_up_to_the_difference_of_the_scores():
    method = METHODS["expected-grad-cam"](LAST.model, LAST.layer, samples=3)
    images = LAST.images[:2]
    found = method.explain(images, 0)
    noise = torch.randn(3, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    contrast = images.flatten(1).std(1, unbiased=False).view(-1, 1, 1, 1)
    blurred = torch.stack([torch.as_tensor(ref.gaussian_blur(image, 51, 50.0)) for image in images])
    with torch.no_grad():
        before = torch.stack([LAST.model(blurred + 0.3 * contrast * draw)[:, 0] for draw in noise]).mean(0)
    assert_same(found.saliency[LAST.layer].sum((1, 2)), found.scores - before)


def test_expected_grad_cam_rejects_wrong_options():
    with pytest.raises(OptionError, match="samples"):
        METHODS["expected-grad-cam"](LAST.model, samples=0)
    with pytest.raises(OptionError, match="std"):
        METHODS["expected-grad-cam"](LAST.model, std=-1.0)

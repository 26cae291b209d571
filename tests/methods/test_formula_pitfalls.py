"""Mistakes that other libraries make in the formulas, one test for each."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from cases import EARLIER, LAST, SMALL, assert_same, stack
from comparisons import FEWER, home, is_for_transformers, layers_of
from models import images as draw_images
from networks import blocks, signal, volume
from oracles import ORACLES
from representatives import ON_CLASSES
from torch import Tensor
from torch.testing import assert_close

from gradcam_kit import METHODS, GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from gradcam_kit.errors import NonFiniteError
from gradcam_kit.methods.grad_cam_plus_plus import grad_cam_plus_plus_weights
from gradcam_kit.methods.xgrad_cam import xgrad_cam_weights

SIGNED = SMALL[3]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def saliency(cam, images: Tensor, targets=None) -> Tensor:
    (found,) = cam.explain(images, targets).saliency.values()
    return found


# Grad-CAM++


def wrong_denominator(activations: Tensor, gradients: Tensor) -> Tensor:
    """Sum of A G^3 instead of the sum of A, times G^3."""
    denominator = 2 * gradients**2 + (activations * gradients**3).flatten(2).sum(2)[..., None, None]
    alpha = gradients**2 / denominator.where(denominator != 0, 1)
    weights = (alpha * gradients.clamp(min=0)).flatten(2).sum(2)
    return torch.einsum("nkhw,nk->nhw", activations, weights)


@pytest.mark.parametrize("case", [EARLIER, SMALL[2], SIGNED], ids=lambda case: case.name)
def test_grad_cam_plus_plus_before_the_pooled_layer(case):
    found = saliency(GradCAMPlusPlus(case.model, case.layer), case.images, case.targets[:, 0])
    assert_same(found, stack(case, ORACLES["grad-cam++"])[:, 0])
    samples = [case.samples[i, 0] for i in range(2)]
    gradients = torch.stack([sample.gradients for sample in samples])
    wrong = wrong_denominator(torch.stack([sample.activations for sample in samples]), gradients)
    assert (found - wrong).abs().max() > 0.05 * found.abs().max()


def test_at_the_pooled_layer_a_wrong_denominator_would_pass():
    found = saliency(GradCAMPlusPlus(LAST.model, LAST.layer), LAST.images, LAST.targets[:, 0])
    samples = [LAST.samples[i, 0] for i in range(2)]
    activations = torch.stack([sample.activations for sample in samples])
    assert_same(found, wrong_denominator(activations, torch.stack([sample.gradients for sample in samples])))


def test_grad_cam_plus_plus_weights_by_hand():
    # sums of A are 10 and 2; channel 0: 1 / (2 + 10) of the only positive gradient; channel 1: 4 x 2 / (2 + 2 x 2)
    activations = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    gradients = torch.tensor([[[[1.0, 0.0], [0.0, -3.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    weights = grad_cam_plus_plus_weights(activations, gradients).flatten().tolist()
    assert weights == pytest.approx([1 / 12, 4 / 3])
    assert weights[1] != pytest.approx(float((gradients[0, 1] ** 3).sum()))  # a division applied to a copy
    authors = grad_cam_plus_plus_weights(activations, gradients, "authors").flatten().tolist()
    assert authors == pytest.approx([1.0, 2.0])


def test_denominator_of_exactly_zero_counts_as_one():
    activations, gradients = torch.tensor([[[-1.0, -1.0]]]), torch.tensor([[[1.0, 0.5]]])
    # 2 - 2 = 0 at the first position: G^2 / 1 = 1; the second is 1/2 / (2 - 1)
    assert grad_cam_plus_plus_weights(activations, gradients).item() == pytest.approx(1.5)
    assert ref.grad_cam_plus_plus_weights(activations[0], gradients[0]).item() == pytest.approx(1.5)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-4, 1.0, 1e3])
@pytest.mark.parametrize("variant", ["paper", "authors"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_small_gradients_are_not_swamped(scale, variant, dtype, tolerance):
    activations, gradients = draw(2, 4, 5, 5).abs(), scale * draw(2, 4, 5, 5, seed=1)
    found = grad_cam_plus_plus_weights(activations.to(dtype), gradients.to(dtype), variant).flatten(1)
    # the transcription squares and cubes, so it gets the scale as an inverse one of the activations
    pairs = zip(activations, gradients / scale, strict=True)
    expected = np.stack([ref.grad_cam_plus_plus_weights(scale * a, g, variant) for a, g in pairs])
    assert_same(found / scale, expected, tolerance)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_which_methods_do_not_depend_on_the_scale_of_the_score(scale):
    invariant = ("grad-cam", "hires-cam", "xgrad-cam", "layer-cam", "eigen-grad-cam", "seg-eigen-cam")
    for name in [name for name in (*invariant, "grad-cam++") if name in METHODS]:
        cam = METHODS[name](EARLIER.model, EARLIER.layer)
        once = cam(EARLIER.images, lambda logits: logits[:, 1])
        scaled = cam(EARLIER.images, lambda logits: scale * logits[:, 1])
        assert bool((once - scaled).abs().max() < 1e-5) is (name in invariant), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiny_gradients_in_half_precision(dtype):
    # The largest mean gradient is about 1e-4, and its cube is below the smallest half.
    model, images = blocks(), draw_images(2)
    with torch.no_grad():
        model.fc.weight.mul_(1e-3)
    exact = GradCAMPlusPlus(model, "block2").explain(images.double(), 1)
    found = GradCAMPlusPlus(model.to(dtype), "block2").explain(images.to(dtype), 1)
    assert found.heatmaps.dtype == torch.float32
    assert exact.heatmaps.any()
    assert_close(found.heatmaps, exact.heatmaps, rtol=0, atol=0.05)


# NaN and zero denominators


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_images_and_activations_are_errors(bad):
    images = draw_images(3).double()
    images[2, 1, 4, 4] = bad
    for name in ON_CLASSES:
        with pytest.raises(NonFiniteError, match="image 2 of the batch"):
            METHODS[name](home(name), layers_of(name)[-1], **FEWER.get(name, {})).explain(images)
    model = blocks()
    with torch.no_grad():
        model.block1[0].bias[1] = bad
    with pytest.raises(NonFiniteError, match=r"layer 'block1'.*image 0"):
        GradCAM(model, "block1").explain(draw_images(2).double(), 1)


def test_xgrad_cam_with_a_vanishing_sum():
    gradients = draw(1, 3, 4, 4)
    activations = draw(1, 3, 4, 4, seed=1)
    activations[0, 0] -= activations[0, 0].mean()  # cancels, up to rounding
    activations[0, 1] = 0
    weights = xgrad_cam_weights(activations, gradients).flatten()
    assert weights[:2].tolist() == [0, 0]
    assert weights[2].item() == pytest.approx(ref.xgrad_cam_weights(activations[0], gradients[0])[2])
    single = xgrad_cam_weights(activations.float(), gradients.float()).flatten()
    assert single[0].abs() < 1e6
    assert single[1] == 0
    # a small sum that is no rounding is divided by
    activations[0, 0] = 1e-12
    assert xgrad_cam_weights(activations, gradients).flatten()[0].item() == pytest.approx(float(gradients[0, 0].mean()))


def test_xgrad_cam_of_a_centered_layer_is_finite():
    model = blocks()
    model.block1.append(torch.nn.InstanceNorm2d(6).double())  # every channel sums to zero
    found = XGradCAM(model, "block1").explain(draw_images(2).double())
    assert torch.isfinite(found.heatmaps).all()
    assert not found.saliency["block1"].any()


# The last stage


def test_all_negative_saliency_gives_an_empty_map():
    found = GradCAM(LAST.model, "block2").explain(LAST.images, lambda logits: logits[:, 1] - 1e3)
    assert found.heatmaps.any()  # a negative score is no negative evidence
    model = blocks()
    with torch.no_grad():
        model.fc.weight.copy_(-model.fc.weight.abs())
    found = GradCAM(model, "block2").explain(LAST.images, 1)
    assert found.saliency["block2"].amax() <= 0
    assert not found.heatmaps.any()
    assert found.is_empty.all()


def test_maximum_of_the_heatmap_is_where_the_saliency_has_it():
    for case in (EARLIER, SIGNED):
        found = GradCAM(case.model, case.layer).explain(case.images, case.targets)
        signed = found.saliency[case.layer].flatten(2)
        assert torch.equal(found.heatmaps.flatten(2).argmax(2), signed.argmax(2))
        assert (found.heatmaps.flatten(2).amax(2) == 1).all()
        assert not found.heatmaps.flatten(2)[signed <= 0].any()


def test_layer_cam_over_several_layers():
    layers = ["block1", "block2"]
    found = LayerCAM(LAST.model, layers).explain(LAST.images, LAST.targets)
    strong = LayerCAM(LAST.model, layers, gamma=5.0, fusion="mean")(LAST.images, LAST.targets)
    for index in np.ndindex(2, 2):
        maps = [found.saliency[layer][index] for layer in layers]
        by_default = ref.layer_cam_heatmap(maps, LAST.size, [True, False])
        assert_close(found.heatmaps[index].double(), torch.from_numpy(by_default), rtol=0, atol=1e-6)
        other = ref.layer_cam_heatmap(maps, LAST.size, [True, False], gamma=5.0, fusion="mean")
        assert_close(strong[index].double(), torch.from_numpy(other), rtol=0, atol=1e-6)
    assert torch.equal(LayerCAM(LAST.model, layers[::-1])(LAST.images, LAST.targets), found.heatmaps)
    assert (LayerCAM(LAST.model, layers, fusion="mean")(LAST.images, LAST.targets) - found.heatmaps).abs().max() > 0.05
    for layer in layers:  # no tanh for a single layer
        alone = LayerCAM(LAST.model, layer)(LAST.images, LAST.targets)
        plain = [[ref.heatmap([one], LAST.size) for one in row] for row in found.saliency[layer]]
        assert_close(alone.double(), torch.from_numpy(np.array(plain)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("build", "size", "layer_size"), [(signal, (21,), (11,)), (volume, (6, 8, 7), (3, 4, 4))])
def test_signals_and_volumes_are_interpolated_linearly(build, size, layer_size):
    images = draw_images(2, size=size).double()
    for name in [name for name in ON_CLASSES if not is_for_transformers(name)]:
        found = METHODS[name](build(), "block2", normalize="none", **FEWER.get(name, {})).explain(images, 1)
        (signed,) = found.saliency.values()
        assert found.heatmaps.shape == (2, *size)
        if signed.shape[1:] != layer_size or name == "winsor-cam":  # at the size of the input; with its own weights
            continue
        expected = np.stack([ref.upsample(ref.relu(one), size) for one in signed])
        assert_close(found.heatmaps.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_the_default_is_the_map_of_the_paper():
    found = GradCAM(EARLIER.model, "block2").explain(EARLIER.images, EARLIER.targets)
    signed = found.saliency["block2"]
    assert signed.amin() < 0 < signed.amax()  # the signed map is there for those who want it
    assert found.heatmaps.amin() == 0
    expected = [[ref.heatmap([one], EARLIER.size) for one in row] for row in signed]
    assert_close(found.heatmaps.double(), torch.from_numpy(np.array(expected)), rtol=0, atol=1e-6)
    nearest = torch.nn.functional.interpolate(signed.clamp(min=0), size=EARLIER.size, mode="nearest")
    nearest = nearest / nearest.amax((2, 3), keepdim=True).clamp(min=1e-12)
    assert (found.heatmaps - nearest).abs().max() > 0.1


def test_heatmaps_are_not_quantized():
    images = draw_images(1, size=(96, 96)).double()
    found = GradCAM(blocks(), "block1")(images, 2)
    values = found[found > 0].unique()
    assert found.dtype == torch.float32
    assert len(values) > 1000
    assert ((values * 255) % 1 > 1e-3).float().mean() > 0.9

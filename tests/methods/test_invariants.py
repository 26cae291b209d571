"""What holds for every name in `METHODS`, whatever its formula."""

from __future__ import annotations

import copy

import pytest
import torch
from comparisons import FEWER, home, is_for_transformers, layers_of
from models import images as draw_images
from networks import blocks, signal, vit, volume
from representatives import ON_CLASSES, each
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import METHODS, explain_all
from gradcam_kit.targets import ClassLogit


def pairs(exempt=()):
    return [(name, layer) for name in ON_CLASSES if name not in exempt for layer in layers_of(name)]


def each_layer(exempt=()):
    return pytest.mark.parametrize(("name", "layer"), pairs(exempt))


EACH = pytest.mark.parametrize("name", ON_CLASSES)
EACH_LAYER = each_layer()
EACH_KIND = pytest.mark.parametrize("name", each())
EACH_KIND_LAYER = pytest.mark.parametrize(("name", "layer"), each(pairs()))
"""For what depends on the pass and not on the formula."""

TWO_EACH = [[0, 1], [2, 3], [4, 0]]

PERMUTED = {
    "random-cam": "every channel keeps its place in the draw",
    **{name: "attention has no channels" for name in ON_CLASSES if is_for_transformers(name)},
}
"""Methods whose map may change when the channels are permuted, and why."""

SCALED = {
    "grad-cam++": "alpha depends on G times the sum of A",
    "refine-cam": "as Grad-CAM++",
    "smooth-grad-cam++": "as Grad-CAM++",
    "score-cam": "the softmax over the channels sharpens",
    "finer-cam": "the references are weighted by their probabilities",
    "ss-cam": "as Score-CAM",
    "is-cam": "as Score-CAM",
    "group-cam": "groups count with differences of probabilities",
    "sess": "windows count with probabilities",
    "rise": "masks count with probabilities",
    "generic-attention": "the rules of several blocks are multiplied",
    "shapley-cam": "the logarithm of the probability is not linear in the logits",
}
"""Methods whose map changes when the scores are multiplied, by their formula."""


def explain(name, model, layer, images, targets=None, **options):
    return METHODS[name](model, layer, **FEWER.get(name, {}), **options).explain(images, targets)


def signed(found) -> Tensor:
    """The signed map of the only layer."""
    (saliency,) = found.saliency.values()
    return saliency


def pictures(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Three images for `home(name)`."""
    return draw_images(3, size=(16, 16) if is_for_transformers(name) else (16, 14)).to(dtype)


def same_maps(found, expected, tolerance: float = 1e-6) -> None:
    assert expected.heatmaps.any()
    assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=tolerance)
    assert torch.equal(found.is_empty, expected.is_empty)


def same_saliency(found, expected, tolerance: float = 1e-10) -> None:
    for layer, saliency in expected.saliency.items():
        assert_close(found.saliency[layer], saliency, rtol=0, atol=tolerance * float(saliency.abs().max()))
    same_maps(found, expected)


@pytest.mark.parametrize(
    ("name", "layer", "targets"), [*((*pair, TWO_EACH) for pair in pairs()), *each((*pair, None) for pair in pairs())]
)
def test_batch_equals_one_by_one(name, layer, targets):
    model, images = home(name), pictures(name)
    whole = explain(name, model, layer, images, targets)
    for i in range(3):
        own = targets and torch.tensor(targets[i : i + 1])
        alone = explain(name, model, layer, images[i : i + 1], own)
        scale = float(signed(whole).abs().max())
        assert_close(signed(whole)[i], signed(alone)[0], rtol=0, atol=1e-10 * scale)
        assert_close(whole.heatmaps[i], alone.heatmaps[0], rtol=0, atol=1e-6)
        assert torch.equal(whole.is_empty[i], alone.is_empty[0])
        assert_close(whole.scores[i], alone.scores[0])


@EACH
def test_several_targets_equal_separate_calls(name):
    model, images, targets = home(name), pictures(name), torch.tensor([[0, 1], [2, 3], [4, 0]])
    together = explain(name, model, layers_of(name)[0], images, targets)
    assert together.heatmaps.shape == (3, 2, *images.shape[2:])
    for j in range(2):
        alone = explain(name, model, layers_of(name)[0], images, targets[:, j])
        assert_close(signed(together)[:, j], signed(alone), rtol=1e-10, atol=1e-14)
        assert_close(together.heatmaps[:, j], alone.heatmaps, rtol=0, atol=1e-6)


@EACH_KIND_LAYER
def test_range_type_and_graph(name, layer):
    images = pictures(name, dtype=torch.float32).requires_grad_()
    found = explain(name, home(name).float(), layer, images)
    heatmaps = found.heatmaps
    assert heatmaps.shape == (3, *images.shape[2:])
    assert heatmaps.dtype == torch.float32
    assert heatmaps.device == images.device
    assert not heatmaps.requires_grad
    assert heatmaps.amin() >= 0
    assert torch.equal(heatmaps.amax((1, 2)), (~found.is_empty).float())
    assert not found.is_empty.all()
    for tensor in (signed(found), found.scores, found.output):
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
    assert images.grad is None


@each_layer(exempt=["rise"])  # whose masks belong to the values of the images, so that rounding changes them
def test_double_precision_end_to_end(name, layer):
    double = explain(name, home(name), layer, pictures(name))
    single = explain(name, home(name).float(), layer, pictures(name, dtype=torch.float32))
    assert signed(double).dtype == double.scores.dtype == torch.float64
    assert double.heatmaps.dtype == torch.float32
    same_maps(single, double, 1e-3)
    # A detour through float32 would leave multiples of its rounding.
    assert not torch.equal(signed(double), signed(double).float().double())


@each_layer(exempt=PERMUTED)
def test_permuted_channels_give_the_same_map(name, layer):
    model, order = home(name), torch.tensor([3, 0, 5, 1, 4, 2])
    before = explain(name, model, layer, pictures(name))
    convolution, after = (model.block1[0], model.block2[0]) if layer == "block1" else (model.block2[0], model.fc)
    with torch.no_grad():
        convolution.weight.copy_(convolution.weight[order])
        convolution.bias.copy_(convolution.bias[order])
        after.weight.copy_(after.weight[:, order])
    same_saliency(explain(name, model, layer, pictures(name)), before)


@EACH_KIND_LAYER
def test_frozen_equals_trainable(name, layer):
    frozen = home(name).requires_grad_(False)
    trainable = copy.deepcopy(frozen).requires_grad_()
    first, second = explain(name, frozen, layer, pictures(name)), explain(name, trainable, layer, pictures(name))
    assert torch.equal(first.heatmaps, second.heatmaps)
    assert torch.equal(signed(first), signed(second))
    assert all(parameter.grad is None for parameter in trainable.parameters())
    assert all(parameter.requires_grad for parameter in trainable.parameters())


def changed_head(name: str, scale: float = 1.0, shift: float = 0.0) -> nn.Module:
    model = home(name)
    head = model.head if is_for_transformers(name) else model.fc
    with torch.no_grad():
        head.weight.mul_(scale)
        head.bias.mul_(scale).add_(shift)
    return model


@pytest.mark.parametrize(
    ("name", "layer", "shift"), [*((*pair, -50.0) for pair in pairs()), *each((*pair, 7.0) for pair in pairs())]
)
def test_shifted_logits_give_the_same_map(name, layer, shift):
    expected = explain(name, home(name), layer, pictures(name))
    found = explain(name, changed_head(name, shift=shift), layer, pictures(name))
    same_maps(found, expected)
    if METHODS[name].target_type is ClassLogit:
        assert_close(found.scores, expected.scores + shift)


@each_layer(exempt=SCALED)
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_scaled_scores_give_the_same_map(name, layer, scale):
    expected = explain(name, home(name), layer, pictures(name))
    same_maps(explain(name, changed_head(name, scale=scale), layer, pictures(name)), expected)


@pytest.mark.parametrize("name", [name for name in ON_CLASSES if name in SCALED])
def test_scaled_scores_give_another_map_where_the_formula_says_so(name):
    for layer in layers_of(name):
        expected = explain(name, home(name), layer, pictures(name)).heatmaps
        found = explain(name, changed_head(name, scale=30.0), layer, pictures(name)).heatmaps
        assert (found - expected).abs().max() > 1e-3


@EACH_KIND_LAYER
def test_memory_format_changes_nothing(name, layer):
    expected = explain(name, home(name), layer, pictures(name))
    model = home(name).to(memory_format=torch.channels_last)
    images = pictures(name).to(memory_format=torch.channels_last)
    same_saliency(explain(name, model, layer, images), expected)
    strided = torch.stack([pictures(name), pictures(name)], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    same_saliency(explain(name, model, layer, strided), expected)


@pytest.mark.parametrize("name", each([name for name in ON_CLASSES if not is_for_transformers(name)]))
@pytest.mark.parametrize(("build", "size"), [(signal, (21,)), (volume, (6, 5, 7))], ids=["signal", "volume"])
def test_signals_and_volumes(name, build, size):
    images = draw_images(2, size=size).double()
    for layer in layers_of(name):
        found = explain(name, build(), layer, images)
        assert found.heatmaps.shape == (2, *size)
        assert torch.isfinite(found.heatmaps).all()
        assert torch.equal(found.heatmaps.flatten(1).amax(1), (~found.is_empty).float())


@EACH_KIND
def test_inputs_stay_bitwise_unchanged(name):
    model, images = home(name), pictures(name)
    before, version, targets = images.clone(), images._version, torch.tensor([0, 4, 2])
    state = copy.deepcopy(model.state_dict())
    found = explain(name, model, list(layers_of(name)), images, targets)
    assert found.heatmaps.any()
    assert torch.equal(images, before)
    assert images._version == version
    assert targets.tolist() == [0, 4, 2]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in ON_CLASSES if "block1" in layers_of(name)])
def test_maximum_is_where_the_saliency_has_it(name):
    # The first block has the resolution of the images.
    found = explain(name, home(name), "block1", pictures(name))
    saliency = signed(found)
    assert saliency.shape == found.heatmaps.shape
    assert torch.equal(found.heatmaps.flatten(1).argmax(1), saliency.flatten(1).argmax(1))


@pytest.mark.parametrize("batch_size", [1, 7])
@EACH_KIND
def test_batch_size_changes_nothing(name, batch_size):
    layer = layers_of(name)[0]
    expected = explain(name, home(name), layer, pictures(name))
    same_saliency(explain(name, home(name), layer, pictures(name), batch_size=batch_size), expected)


@EACH_KIND
def test_same_call_gives_the_same_map(name):
    cam = METHODS[name](home(name), layers_of(name)[-1], **FEWER.get(name, {}))
    state = torch.get_rng_state()
    first, second = cam(pictures(name)), cam(pictures(name))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("build", [blocks, vit], ids=["blocks", "vit"])
def test_explaining_all_together_equals_separate_calls(build):
    model, targets = build(), torch.tensor([[0, 1], [2, 3], [4, 0]])
    names = [name for name in ON_CLASSES if is_for_transformers(name) is (build is vit)]
    cams = [METHODS[name](model, layer, **FEWER.get(name, {})) for name in names for layer in layers_of(name)]
    images = pictures(names[0])
    for cam, together in zip(cams, explain_all(cams, images, targets), strict=True):
        assert torch.equal(together, cam(images, targets))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@EACH_LAYER
def test_device_of_the_images(name, layer):
    found = explain(name, home(name).cuda(), layer, pictures(name).cuda())
    assert found.heatmaps.device.type == found.is_empty.device.type == signed(found).device.type == "cuda"
    assert_close(found.heatmaps.cpu(), explain(name, home(name), layer, pictures(name)).heatmaps, rtol=0, atol=1e-6)

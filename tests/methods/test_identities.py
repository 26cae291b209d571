"""Closed forms and identities between methods, in float64."""

from __future__ import annotations

import copy

import pytest
import reference as ref
import torch
from cases import EARLIER, LARGE, SMALL, assert_same
from models import images as draw_images
from networks import blocks, flat64, signal, volume
from torch import Tensor

from gradcam_kit import METHODS
from gradcam_kit.functional import normalize
from gradcam_kit.methods.grad_cam_plus_plus import grad_cam_plus_plus_weights
from gradcam_kit.targets import ClassLogit, FinerTarget

SIZES = {blocks: (16, 14), signal: (21,), volume: (6, 8, 7)}
CLASSES = [1, 3]
SIGNED_SUM = next(case for case in LARGE if case.name == "resnet18 signed")


def sum_over(weights: Tensor, activations: Tensor) -> Tensor:
    return torch.einsum("nk,nk...->n...", weights, activations)


def mean_over(weights: Tensor, activations: Tensor) -> Tensor:
    return sum_over(weights, activations) / activations[0, 0].numel()


def shifted_to_zero(maps: Tensor) -> Tensor:
    return maps - maps.flatten(1).amin(1).view(-1, *(1 for _ in maps.shape[1:]))


def pooled(activations: Tensor) -> Tensor:
    return activations.flatten(2).mean(2)


# Behind the layer follow mean pooling and a linear head with class rows w, the layer is not negative, y is the logit.
CLOSED_FORMS = {
    "cam": lambda a, w, y: mean_over(w, a),
    "einsum-cam": lambda a, w, y: mean_over(w, a),
    "grad-cam": lambda a, w, y: mean_over(w, a),
    "hires-cam": lambda a, w, y: mean_over(w, a),
    "xgrad-cam": lambda a, w, y: mean_over(w, a),
    "layer-cam": lambda a, w, y: mean_over(w.clamp(min=0), a),
    "grad-cam-elementwise": lambda a, w, y: mean_over(w.clamp(min=0), a),
    "grad-cam++": lambda a, w, y: sum_over(w.clamp(min=0) / (2 + w * pooled(a)), a),
    "ablation-cam": lambda a, w, y: sum_over(w * pooled(a) / y.abs()[:, None], a),
    "recipro-cam": lambda a, w, y: shifted_to_zero(mean_over(w, a)),
}


def explain(name, model, layer, images, targets=None, **options):
    found = METHODS[name](model, layer, **options).explain(images, targets)
    return found.saliency[layer], found


@pytest.mark.parametrize("build", list(SIZES))
@pytest.mark.parametrize("name", [name for name in CLOSED_FORMS if name in METHODS])
def test_closed_form_of_mean_pooling_and_a_linear_head(name, build):
    model, images = build(), draw_images(2, size=SIZES[build]).double()
    with torch.no_grad():
        activations = model.block2(model.block1(images))
        logits = model(images)
    weights, scores = model.fc.weight.detach()[CLASSES], logits[range(2), CLASSES]
    saliency, _ = explain(name, model, "block2", images, CLASSES)
    assert_same(saliency, CLOSED_FORMS[name](activations, weights, scores))


@pytest.mark.parametrize(
    "name", [n for n in ("cam", "einsum-cam", "grad-cam", "hires-cam", "xgrad-cam") if n in METHODS]
)
def test_map_sums_to_the_logit_without_its_bias(name):
    model, images = blocks(), draw_images(2).double()
    saliency, found = explain(name, model, "block2", images, CLASSES)
    assert_same(saliency.sum((1, 2)) + model.fc.bias.detach()[CLASSES], found.scores)


def test_flattened_layer_and_one_linear_layer():
    model, images = flat64(), draw_images(2).double()
    for layer, complete in (("relu2", True), ("stage2", True), ("relu1", False)):
        saliency, found = explain("hires-cam", model, layer, images, CLASSES)
        gap = saliency.sum((1, 2)) + model.fc.bias.detach()[CLASSES] - found.scores
        assert bool(gap.abs().max() < 1e-10) is complete
    saliency, found = explain("grad-cam", model, "relu2", images, CLASSES)
    assert (saliency.sum((1, 2)) + model.fc.bias.detach()[CLASSES] - found.scores).abs().max() > 0.1


@pytest.mark.parametrize("case", [case for case in SMALL if case.name.startswith("tiny")], ids=lambda case: case.name)
def test_xgrad_cam_sums_to_gradient_times_activation(case):
    saliency, _ = explain("xgrad-cam", case.model, case.layer, case.images, case.targets)
    products = [float((sample.gradients * sample.activations).sum()) for sample in case.samples.values()]
    assert_same(saliency.flatten(2).sum(2), torch.tensor(products, dtype=torch.float64).view(2, 2))
    plain, _ = explain("hires-cam", case.model, case.layer, case.images, case.targets)
    assert_same(saliency.flatten(2).sum(2), plain.flatten(2).sum(2))


def test_methods_that_agree_at_the_pooled_layer_differ_before_it():
    maps = {
        name: explain(name, EARLIER.model, "block1", EARLIER.images, EARLIER.targets)[0]
        for name in ("grad-cam", "hires-cam", "xgrad-cam", "layer-cam", "grad-cam++")
    }
    for name, one in maps.items():
        for other, another in maps.items():
            assert name == other or (one - another).abs().max() > 0.05 * one.abs().max(), (name, other)


def test_grad_cam_plus_plus_weights_do_not_move_when_positions_do():
    activations, gradients = draw_images(2, 5, (4, 6)).double().abs(), draw_images(2, 5, (4, 6), seed=3).double()
    moved = [
        one.flatten(2)[..., torch.randperm(24, generator=torch.Generator().manual_seed(0))].view(one.shape)
        for one in (activations, gradients)
    ]
    for variant in ("paper", "authors"):
        expected = grad_cam_plus_plus_weights(activations, gradients, variant)
        assert_same(grad_cam_plus_plus_weights(*moved, variant), expected)


@pytest.mark.parametrize("layer", ["block1", "block2"])
def test_score_cam_and_its_logits(layer):
    model, images = blocks(), draw_images(2).double()
    expected, _ = explain("score-cam", model, layer, images, CLASSES)
    shifted, scaled = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        shifted.fc.bias += 40
        scaled.fc.weight *= 5
        scaled.fc.bias *= 5
    assert_same(explain("score-cam", shifted, layer, images, CLASSES)[0], expected)
    found = explain("score-cam", scaled, layer, images, CLASSES)[0]
    assert (found - expected).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_pooled_gradients_between_hires_cam_and_grad_cam(case):
    for window, other in ((1, "hires-cam"), (max(case.size), "grad-cam")):
        found, _ = explain("seg-xres-cam", case.model, case.layer, case.images, case.targets, pool_window=window)
        assert_same(found, explain(other, case.model, case.layer, case.images, case.targets)[0])


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_shapley_cam_of_a_logit_behind_piecewise_linear_layers_is_grad_cam(case):
    found, _ = explain("shapley-cam", case.model, case.layer, case.images, ClassLogit(case.targets))
    expected, _ = explain("grad-cam", case.model, case.layer, case.images, case.targets)
    assert_same(found, expected)
    by_default, _ = explain("shapley-cam", case.model, case.layer, case.images, case.targets)
    assert (by_default - expected).abs().max() > 1e-3 * expected.abs().max()


def test_layer_cam_where_activations_are_not_negative():
    for case, equal in ((EARLIER, True), (SIGNED_SUM, False)):
        found, _ = explain("layer-cam", case.model, case.layer, case.images, case.targets)
        other, _ = explain("grad-cam-elementwise", case.model, case.layer, case.images, case.targets)
        assert bool((found - other).abs().max() < 1e-12) is equal


@pytest.mark.parametrize("build", list(SIZES))
def test_recipro_cam_is_cam_after_normalization(build):
    model, images = build(), draw_images(2, size=SIZES[build]).double()
    found, cam = (explain(name, model, "block2", images, CLASSES)[0] for name in ("recipro-cam", "cam"))
    assert_same(normalize(found), normalize(cam))


def test_ablation_cam_and_the_sign_of_the_score():
    model, images = blocks(), draw_images(2).double()
    expected, _ = explain("ablation-cam", model, "block1", images, CLASSES)
    for shift in (-30.0, 30.0):
        shifted = copy.deepcopy(model)
        with torch.no_grad():
            shifted.fc.bias.add_(shift)
        found, explanation = explain("ablation-cam", shifted, "block1", images, CLASSES)
        assert (explanation.scores.sign() == shift / 30).all()
        assert_same(normalize(found), normalize(expected))


def test_finer_comparison_replaces_the_row_of_the_head():
    model, images = blocks(), draw_images(2).double()
    target = FinerTarget(CLASSES, weighting="mean", gamma=0.6)
    found, explanation = explain("grad-cam", model, "block2", images, target)
    weights = model.fc.weight.detach()
    activations = model.block2(model.block1(images)).detach()
    rows = []
    for logits, own in zip(explanation.output, CLASSES, strict=True):
        others = ref.finer_references(logits, own)
        rows.append(weights[own] - 0.6 * weights[others].mean(0))
    assert_same(found, mean_over(torch.stack(rows), activations))

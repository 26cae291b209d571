"""BalancedCAM: its formula with loops, what its maps sum to, its layers, and the fusion "sum"."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import reference as ref
import torch
from frozen import frozen
from models import build, images, tiny
from networks import blocks, vit, vit_mean
from numpy.testing import assert_allclose
from torch import nn
from torch.testing import assert_close
from transformer_models import plain_vit, timm_swin, timm_vit, torchvision_swin, torchvision_vit

from gradcam_kit import METHODS, BalancedCAM, EigenCAM, GradCAM, HiResCAM, LayerCAM, compare
from gradcam_kit.errors import OptionError, UnknownNameError
from gradcam_kit.functional import upsample

SIZE = (8, 12)
X = images(2, size=SIZE).double()


def looped(model, layer, image, target, prefix, reference="mean"):
    """The map of one layer of one image, from plain hooks on the network with constant factors."""
    kept = []
    plain = frozen(model)
    plain.get_submodule(layer).register_forward_hook(lambda m, a, output: kept.append(output) or output.clone())
    with torch.enable_grad():
        score = plain.requires_grad_()(image[None])[0, target]
    gradient = torch.autograd.grad(score, kept[0])[0][0, prefix:]
    tokens = kept[0].detach()[0, prefix:]
    maps, gradients = tokens.T.unflatten(1, (2, 3)), gradient.T.unflatten(1, (2, 3))
    return ref.balanced_cam(maps, gradients, reference)


@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_heatmaps_are_the_sum_of_the_layers(reference):
    model, layers = vit_mean(), ["blocks.0.norm1", "blocks.0", "blocks.1"]
    found = BalancedCAM(model, layers, reference=reference, normalize="none").explain(X, 1)
    for i, image in enumerate(X):
        maps = [looped(model, layer, image, 1, 0, reference) for layer in layers]
        for layer, expected in zip(layers, maps, strict=True):
            assert_close(found.saliency[layer][i], torch.from_numpy(expected), rtol=0, atol=1e-12)
        total = sum(ref.upsample(one, SIZE) for one in maps)
        assert_allclose(found.heatmaps[i].numpy(), np.maximum(total, 0), atol=1e-6)
    assert found.gradient_rule == "balanced"


def test_the_map_of_a_layer_sums_to_the_score_less_that_of_average_tokens():
    model, layer = vit_mean(), "blocks.0"
    found = BalancedCAM(model, layer).explain(X[:1], 1)
    plain = frozen(model)
    # The constant factors are those of the image: so the network is linear, and its score at other tokens is that of
    # its gradient.
    kept = []
    plain.blocks[0].register_forward_hook(lambda m, a, output: kept.append(output) or output.clone())
    score = plain.requires_grad_()(X[:1])[0, 1]
    tokens = kept[0]
    average = tokens.mean(1, keepdim=True).expand_as(tokens)
    change = (torch.autograd.grad(score, tokens)[0] * (average - tokens)).sum()
    assert_close(found.saliency[layer].sum(), -change.detach(), rtol=0, atol=1e-12)
    biases = [
        plain.get_parameter(name) for name, _ in plain.named_parameters() if "blocks.1" in name and "bias" in name
    ]
    biases += [plain.norm.module.bias, plain.head.bias]
    scored = frozen(model).requires_grad_()
    zero = BalancedCAM(model, layer, reference="zero").explain(X[:1], 1).saliency[layer].sum()
    own = [dict(scored.named_parameters())[name] for name, p in plain.named_parameters() if any(p is b for b in biases)]
    gradients = torch.autograd.grad(scored(X[:1])[0, 1], own)
    added = sum((bias * gradient).sum() for bias, gradient in zip(own, gradients, strict=True))
    assert_close(zero + added, score.detach(), rtol=0, atol=1e-12)


def test_networks_of_relus_have_the_map_of_hires_cam():
    model, x = blocks(), images(2).double()
    found = BalancedCAM(model, reference="zero").explain(x, 1)
    expected = HiResCAM(model).explain(x, 1)
    assert found.layers == expected.layers
    assert torch.equal(found.saliency[found.layers[0]], expected.saliency[found.layers[0]])
    assert torch.equal(found.heatmaps, expected.heatmaps)


@pytest.mark.parametrize(
    ("make", "size", "layers"),
    [
        (torchvision_vit, 32, ["encoder.dropout", "encoder_layer_0", "encoder_layer_1"]),
        (timm_vit, 64, ["patch_embed", "blocks.0", "blocks.1"]),
        (lambda: timm_vit(global_pool="avg"), 64, ["patch_embed", "blocks.0", "blocks.1", "blocks.2"]),
        (timm_swin, 64, ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1"]),
        (torchvision_swin, 64, ["features.0.1", "features.1.0", "features.1.1"]),
        (lambda: plain_vit(pool="mean", prefix=0).float(), (16, 12), ["patch", "blocks.0", "blocks.1", "blocks.2"]),
    ],
    ids=["torchvision vit", "timm vit", "timm mean", "timm swin", "torchvision swin", "plain"],
)
def test_the_stream_of_tokens(make, size, layers):
    model = make().float()
    x = images(1, size=size if isinstance(size, tuple) else (size, size))
    found = BalancedCAM(model).explain(x)
    for layer, end in zip(found.layers, layers, strict=True):
        assert layer.endswith(end), found.layers
    assert len({maps.shape for maps in found.saliency.values()}) == 1


def test_models_without_tokens_use_the_last_layer():
    model = tiny()
    assert BalancedCAM(model).explain(images(2)).layers == GradCAM(model).explain(images(2)).layers


def test_options_that_do_not_exist_are_errors():
    with pytest.raises(UnknownNameError, match=r"reference is 'average'; expected 'mean', 'zero'"):
        BalancedCAM(tiny(), reference="average")
    with pytest.raises(OptionError, match=r"BalancedCAM always uses balanced.*HiResCAM"):
        BalancedCAM(tiny(), gradient_rule="exact")
    assert repr(BalancedCAM(tiny(), reference="zero")).endswith("reference='zero')")


class Fixed(EigenCAM):
    """Maps that a test chooses."""

    def saliency(self, layer):
        return MAPS[layer.layer].expand(len(layer.activations), 2, 2)


MAPS = {"first": torch.tensor([[1.0, -2.0], [0.0, 3.0]]), "second": torch.tensor([[-4.0, 1.0], [0.0, 1.0]])}


def fixed(**options):
    model = build(
        lambda m, x: m.fc(m.second(m.first(x)).mean((2, 3))),
        first=nn.Conv2d(3, 3, 1),
        second=nn.Conv2d(3, 3, 1),
        fc=nn.Linear(3, 2),
    )
    return Fixed(model, ["first", "second"], **options).explain(images(1, size=(2, 2)))


def test_signed_maps_are_added_before_the_relu():
    assert fixed(fusion="sum", normalize="none").heatmaps[0].tolist() == [[0, 0], [0, 4]]
    assert fixed(fusion="mean", normalize="none").heatmaps[0].tolist() == [[0.5, 0.5], [0, 2]]
    assert not fixed(fusion="sum").is_empty.any()


def test_evidence_that_cancels_out_leaves_empty_maps(monkeypatch):
    monkeypatch.setitem(MAPS, "second", -2 * MAPS["first"].abs())
    found = fixed(fusion="sum")
    assert found.is_empty.all()
    assert not found.heatmaps.any()
    assert "other layers have more negative evidence at these positions" in found.empty_because


def test_every_method_takes_the_sum():
    model, x = blocks(), images(2).double()
    for kind in (LayerCAM, METHODS["winsor-cam"], METHODS["refine-cam"]):
        found = kind(model, ["block1", "block2"], fusion="sum", normalize="none").explain(x, 1)
        if kind is LayerCAM:
            total = sum(upsample(maps, x.shape[2:]) for maps in found.saliency.values())
            assert_close(found.heatmaps, total.clamp(min=0).float())
        assert torch.equal(found.is_empty, found.heatmaps.amax((1, 2)) <= 0)


def test_exact_gradients_of_tokens_are_told_once(caplog):
    caplog.set_level(logging.INFO, "gradcam_kit")
    cam = GradCAM(vit())
    cam(images(2).double())
    cam(images(2).double())
    [told] = [one.getMessage() for one in caplog.records]
    assert told.startswith("GradCAM explains the tokens of blocks.1.norm1")
    assert "BalancedCAM" in told
    caplog.clear()
    for other in (
        BalancedCAM(vit()),
        GradCAM(vit(), "blocks.1.norm1"),
        GradCAM(vit(), gradient_rule="balanced"),
        EigenCAM(vit()),
        GradCAM(blocks()),
    ):
        other(images(2).double())
    assert not caplog.records


def test_comparisons_of_token_models_have_it():
    found = compare(vit().float(), images(2), cost=False)
    assert list(found.heatmaps)[-1] == "balanced-cam"
    assert len(found.heatmaps) == 7
    assert not found.left_out
    assert "balanced-cam" not in compare(tiny(), images(2), cost=False).heatmaps


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient


def test_comparisons_say_why_a_token_model_cannot_have_it():
    class Hiding(nn.LayerNorm):
        def forward(self, x):
            return Hidden.apply(super().forward(x))

    model = vit().float()
    hiding = Hiding(8)
    hiding.load_state_dict(model.norm.state_dict())
    model.norm = hiding
    found = compare(model, images(2), cost=False)
    assert "Hidden hides its operations" in found.left_out["balanced-cam"]
    assert len(found.heatmaps) == 6

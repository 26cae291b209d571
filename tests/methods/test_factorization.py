"""Deep feature factorization: the updates against a slow transcription, and what is found in planted concepts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import reference as ref
import torch
from cases import assert_same
from models import Restless, TinyViT, build, seeded
from models import images as draw_images
from networks import blocks, signal, tiny64, volume
from torch import nn
from traces import unchanged

from gradcam_kit import METHODS, DeepFeatureFactorization, LaFAM
from gradcam_kit.errors import NonFiniteError, OptionError, ShapeError
from gradcam_kit.methods.deep_feature_factorization import factorize, nonnegative_rows


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


def start(rows, components, seed=0):
    """The same amount of each concept; the concepts are rows far apart, by cosine, and noise."""
    generator = torch.Generator().manual_seed(seed)
    direction, noise = torch.rand(1 + components, rows.shape[1], generator=generator).double().split([1, components])
    lengths = rows.norm(dim=1)
    alive = [i for i in range(len(rows)) if lengths[i] > 0]
    unit = {i: rows[i] / lengths[i] for i in alive}
    chosen = [max(alive, key=lambda i: float(unit[i] @ direction[0]))]
    while len(chosen) < components:
        chosen.append(min(alive, key=lambda i: max(float(unit[i] @ unit[j]) for j in chosen)))
    return np.ones((len(rows), components)), (rows[chosen] + rows.mean() * noise).numpy()


@pytest.mark.parametrize("components", [1, 3, 7])
def test_updates_equal_the_transcription(components):
    rows = drawn(12, 5) * (drawn(12, 5, seed=1) > 0.3)
    rows[:, 2], rows[4] = 0, 0  # a dead channel and an empty position
    expected = start(rows, components, seed=6)
    for iterations in range(1, 6):
        expected = ref.nmf_step(rows, *expected)
        for found, one in zip(factorize(rows, components, 6, iterations), expected, strict=True):
            assert_same(found, one)


def test_objective_never_rises():
    rows = drawn(40, 9)
    errors = [ref.nmf_objective(rows, *factorize(rows, 4, iterations=i)) for i in (1, 2, 3, 5, 9, 20, 60, 200)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


def test_planted_concepts_are_found():
    concepts = torch.block_diag(*[torch.tensor([[1.0, 2.0, 0.5]])] * 3).double()
    amounts = torch.eye(3).double()[torch.arange(30) % 3] * (0.5 + drawn(30, 1))
    found_amounts, found = factorize(amounts @ concepts, 3)
    directions = nn.functional.normalize(found, dim=1) @ nn.functional.normalize(concepts, dim=1).T
    assert sorted(directions.argmax(1).tolist()) == [0, 1, 2]
    assert (directions.amax(1) > 1 - 1e-6).all()
    assert_same(found_amounts @ found, amounts @ concepts, 1e-6)


def test_order_of_the_rows_has_no_influence():
    rows, order = drawn(20, 6), torch.randperm(20, generator=torch.Generator().manual_seed(2))
    amounts, concepts = factorize(rows, 3, iterations=30)
    changed_amounts, changed_concepts = factorize(rows[order], 3, iterations=30)
    assert_same(changed_concepts, concepts)
    assert_same(changed_amounts, amounts[order])


def test_scale_of_the_rows_only_scales():
    rows = drawn(20, 6).float()
    expected = torch.linalg.multi_dot(factorize(rows, 3, iterations=50))
    for scale in (1e-12, 1e12):
        assert_same(torch.linalg.multi_dot(factorize(scale * rows, 3, iterations=50)) / scale, expected, 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_seed_ends_in_a_poor_minimum(seed):
    blocks = torch.block_diag(*[torch.full((5 + i, 3), 1.0 + i) for i in range(4)]).double()
    rows = blocks + 0.01 * drawn(*blocks.shape)
    assert ref.nmf_objective(rows, *factorize(rows, 4, seed)) < 1e-3 * float((rows**2).sum())


def test_more_components_than_rows():
    rows = drawn(2, 6)
    amounts, concepts = factorize(rows, 4)
    assert_same(amounts @ concepts, rows, 1e-3)


def test_zeros_stay_finite():
    for factor in factorize(torch.zeros(6, 4), 2):
        assert torch.isfinite(factor).all()
    assert not torch.linalg.multi_dot(factorize(torch.zeros(6, 4), 2)).any()


@pytest.mark.parametrize("size", [(7,), (4, 3), (2, 3, 2)], ids=str)
def test_rows_are_lifted_where_negative(size):
    activations = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(0)).double()
    activations[:, 1] = activations[:, 1].abs() + 1  # not lifted
    before = activations.clone()
    found = nonnegative_rows(activations)
    assert found.amin() == 0
    assert found[:, 1].amin() > 1
    assert_same(found, ref.dff_rows(activations))
    assert torch.equal(activations, before)


CASES = {
    "picture": (blocks, "block2", (16, 14)),
    "signed": (tiny64, "stage2", (16, 14)),
    "signal": (signal, "block1", (21,)),
    "volume": (volume, "block2", (6, 8, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_maps_heatmaps_and_concepts(case):
    make, layer, size = CASES[case]
    model, images = make(), draw_images(3, size=size).double()
    found = DeepFeatureFactorization(model, layer, components=4, seed=1).explain(images)
    activations = model.get_submodule(layer)(images) if layer == "block1" else captured(model, layer, images)
    rows = ref.dff_rows(activations.detach())
    positions = activations.shape[2:]
    assert found.layer == layer
    assert found.maps.shape == (3, 4, *positions)
    assert found.concepts.shape == (4, activations.shape[1])
    assert found.heatmaps.shape == (3, 4, *size)
    assert found.maps.amin() >= 0
    assert found.concepts.amin() >= 0
    amounts = found.maps.movedim(1, -1).reshape(-1, 4)
    expected = factorize(torch.from_numpy(rows), 4, seed=1)
    assert_same(amounts, expected[0], 1e-6)
    assert_same(found.concepts, expected[1], 1e-6)
    assert ref.nmf_objective(rows, amounts, found.concepts) < 0.5 * (rows**2).sum()
    for j in range(4):
        highest = found.maps[:, j].amax()
        for i in range(3):
            assert_same(found.heatmaps[i, j], ref.upsample(found.maps[i, j] / highest, size), 1e-6)
    assert found.heatmaps.dtype == torch.float32
    assert found.heatmaps.amin() >= 0
    assert found.heatmaps.amax() <= 1


def captured(model, layer, images):
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[-1].clone()))
    model(images)
    handle.remove()
    return kept[0]


def test_calling_gives_the_heatmaps():
    images = draw_images(2)
    factorization = DeepFeatureFactorization(blocks().float(), components=3)
    assert torch.equal(factorization(images), factorization.explain(images).heatmaps)
    assert factorization.explain(images).layer == "block2"
    assert factorization.components == 3
    assert DeepFeatureFactorization(blocks()).components == 5


def test_concepts_are_shared_by_the_batch():
    """Two pictures, one color each: two concepts, and each picture is dark where it has none of a concept."""
    model = build(lambda m, x: m.fc(m.layer(x).mean((2, 3))), layer=nn.Conv2d(3, 3, 1), fc=nn.Linear(3, 2))
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(3)[..., None, None])
        model.layer.bias.zero_()
    images = torch.zeros(2, 3, 6, 6)
    images[0, 0, :3], images[1, 1, :, 3:] = 1.0, 2.0
    found = DeepFeatureFactorization(model, "layer", components=2).explain(images)
    order = found.concepts[:, :2].argmax(1)
    assert sorted(order.tolist()) == [0, 1]
    heatmaps = found.heatmaps[:, order.argsort()]
    expected = torch.zeros(2, 2, 6, 6)
    expected[0, 0, :3], expected[1, 1, :, 3:] = 1.0, 1.0
    torch.testing.assert_close(heatmaps, expected, rtol=0, atol=1e-3)


def test_seeds():
    model, images = blocks(), draw_images(2).double()
    state = torch.get_rng_state()
    first, again, other = (
        DeepFeatureFactorization(model, "block1", seed=seed, iterations=5).explain(images) for seed in (0, 0, 1)
    )
    assert torch.equal(first.maps, again.maps)
    assert (first.maps - other.maps).abs().max() > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_and_a_reshape_of_ones_own():
    model = seeded(TinyViT()).double()
    images = draw_images(2).double()
    found = DeepFeatureFactorization(model, "blocks.1.norm1", components=2).explain(images)
    assert found.maps.shape == (2, 2, 4, 4)
    own = DeepFeatureFactorization(
        model, "blocks.1.norm1", components=2, reshape=lambda x: x[:, 1:].mT.unflatten(2, (4, 4))
    ).explain(images)
    assert_same(own.maps, found.maps, 1e-6)


def test_leaves_no_trace_and_needs_no_graph():
    images, model = draw_images(2), Restless().train()
    with unchanged(model, images):
        DeepFeatureFactorization(model, "stage2")(images)
    with unchanged(model, images), pytest.raises(NonFiniteError):
        DeepFeatureFactorization(model, "stage2")(images * torch.nan)
    enabled = []
    handle = model.stage2.register_forward_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    with torch.inference_mode():
        found = DeepFeatureFactorization(model, "stage2")(images)
    handle.remove()
    assert enabled == [False]
    assert not found.requires_grad


def test_output_need_not_be_understood():
    model = build(lambda m, x: dict.fromkeys("ab", m.inner(x)), inner=blocks()).double()
    images = draw_images(2).double()
    expected = DeepFeatureFactorization(blocks(), "block1").explain(images)
    assert_same(DeepFeatureFactorization(model, "inner.block1").explain(images).maps, expected.maps)


@pytest.mark.parametrize("options", [{"components": 0}, {"iterations": 0}], ids=str)
def test_wrong_options(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        DeepFeatureFactorization(blocks(), **options)


def test_one_layer_and_at_least_one_image():
    with pytest.raises(OptionError, match="2 target layers; expected one"):
        DeepFeatureFactorization(blocks(), ["block1", "block2"])
    with pytest.raises(ShapeError, match="no images"):
        DeepFeatureFactorization(blocks(), "block1")(torch.zeros(0, 3, 8, 8))


def test_is_no_method():
    assert DeepFeatureFactorization not in METHODS.values()
    assert LaFAM in METHODS.values()
    assert "" not in METHODS

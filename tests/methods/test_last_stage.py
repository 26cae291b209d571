"""Behind the last stage: ReLU, normalize, upsample, fuse, normalize; heatmaps against the transcription."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import reference as ref
import torch
from cases import EARLIER, LAST, VIT, stack
from comparisons import FEWER, is_for_transformers, layers_of
from models import images as draw_images
from networks import blocks, signal, volume
from numpy.testing import assert_allclose
from oracles import ORACLES
from representatives import ON_CLASSES, crossed
from torch import Tensor

from gradcam_kit import METHODS
from gradcam_kit.methods import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture

SIZES = {blocks: (10, 9), signal: (13,), volume: (4, 5, 3)}
NORMALIZATIONS, FUSIONS = ("minmax", "max", "none"), ("mean", "max", "product", "sum")


@cache
def expected(name: str, build, layer: str, oracle=None) -> np.ndarray:
    """The oracle's results, `(n, m, ...)`."""
    template = LAST if layer == "block2" else EARLIER
    return stack(
        replace(template, build=build, size=SIZES[build]), oracle or partial(ORACLES[name], **FEWER.get(name, {}))
    ).numpy()


def winsor_cam(build, layers, index, normalization: str, fusion: str) -> np.ndarray:
    gradients = [expected("winsor-cam", build, layer, _gradients)[index] for layer in layers]
    shares = ref.winsorize([ref.winsor_importance(ref.grad_cam_weights(own)) for own in gradients], 100)
    maps = [expected("winsor-cam", build, layer)[index] for layer in layers]
    if fusion == "sum":
        total = sum(share * ref.upsample(one, SIZES[build]) for one, share in zip(maps, shares, strict=True))
        return ref.normalize(ref.relu(total), normalization)
    maps = [ref.normalize(ref.relu(one), normalization) for one in maps]
    weighted = [share * ref.upsample(one, SIZES[build]) for share, one in zip(shares, maps, strict=True)]
    return ref.normalize(sum(weighted) if fusion == "mean" else ref.fuse(weighted, fusion), normalization)


def _gradients(sample):
    return sample.gradients


def heatmaps(name, build, layers, normalization="minmax", fusion=None) -> np.ndarray:
    """The oracle's heatmaps `(n, m, *t)`; the layers in the order in which they run."""
    result = np.zeros((2, 2, *SIZES[build]))
    for index in np.ndindex(2, 2):
        own = [expected(name, build, layer)[index] for layer in sorted(layers)]
        if name == "winsor-cam":
            result[index] = winsor_cam(build, sorted(layers), index, normalization, fusion or "mean")
        elif name == "layer-cam" and len(layers) > 1 and fusion != "sum":
            shallow = [True] * (len(layers) - 1) + [False]
            result[index] = ref.layer_cam_heatmap(own, SIZES[build], shallow, 2.0, normalization, fusion or "max")
        else:
            default = {"refine-cam": "product", "balanced-cam": "sum"}.get(name, "mean")
            result[index] = ref.heatmap(own, SIZES[build], normalization, fusion or default)
    return result


def explain(name, build, layers, **options):
    case = replace(LAST, build=build, size=SIZES[build])
    return METHODS[name](case.model, layers, **FEWER.get(name, {}), **options).explain(case.images, case.targets)


def same(found: Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float32
    assert expected.max() > 0
    assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6 * max(1.0, expected.max()))


ON_CNNS = [name for name in ON_CLASSES if not is_for_transformers(name)]
SEVERAL = [name for name in ON_CNNS if len(layers_of(name)) > 1]
OWN_FUSION = ("grad-cam", "layer-cam", "refine-cam", "winsor-cam")
"""Methods that fuse layers in their own way, and one that does not."""


@pytest.mark.parametrize(("name", "normalization"), crossed(ON_CNNS, NORMALIZATIONS, whole=OWN_FUSION))
def test_one_layer(name, normalization):
    for layer in layers_of(name):
        found = explain(name, blocks, layer, normalize=normalization)
        same(found.heatmaps, heatmaps(name, blocks, [layer], normalization))
        if name == "winsor-cam":  # also empty where the layer has no importance
            assert found.is_empty.tolist() == (heatmaps(name, blocks, [layer], "max").max((2, 3)) <= 0).tolist()
        else:
            assert found.is_empty.tolist() == (expected(name, blocks, layer).max((2, 3)) <= 0).tolist()


@pytest.mark.parametrize(
    ("name", "normalization", "fusion"), crossed(SEVERAL, product(NORMALIZATIONS, FUSIONS), whole=OWN_FUSION)
)
def test_two_layers(name, normalization, fusion):
    found = explain(name, blocks, ["block2", "block1"], normalize=normalization, fusion=fusion)
    wanted = heatmaps(name, blocks, ["block1", "block2"], normalization, fusion)
    if (name, fusion) == ("winsor-cam", "product"):  # here one layer has no importance, which empties a product
        assert not wanted.any()
        assert not found.heatmaps.any()
    else:
        same(found.heatmaps, wanted)
    assert list(found.saliency) == list(found.layers) == ["block2", "block1"]


@pytest.mark.parametrize(("name", "build"), crossed(ON_CNNS, SIZES, first=ON_CNNS))
def test_signals_pictures_and_volumes_by_default(name, build):
    for layer in layers_of(name):
        same(explain(name, build, layer).heatmaps, heatmaps(name, build, [layer]))
    if name in SEVERAL:
        same(explain(name, build, ["block1", "block2"]).heatmaps, heatmaps(name, build, ["block1", "block2"]))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", [name for name in ON_CLASSES if is_for_transformers(name)])
def test_transformers(name, normalization):
    case = VIT[0]
    found = METHODS[name](case.model, case.layer, normalize=normalization)(case.images, case.targets)
    maps = stack(case, ORACLES[name])
    expected = [[ref.heatmap([one], case.size, normalization) for one in row] for row in maps]
    same(found, np.array(expected))


class Fixed(BaseCAM):
    """Gives a known signed map."""

    needs = Evidence.NONE

    def __init__(self, *args, maps, **options):
        super().__init__(*args, **options)
        self.maps = maps

    def saliency(self, layer: LayerCapture) -> Tensor:
        return self.maps[layer.layer] if isinstance(self.maps, dict) else self.maps


def fixed(maps, layers="block1", **options):
    first = maps["block1"] if isinstance(maps, dict) else maps
    return Fixed(blocks(), layers, maps=maps, **options).explain(draw_images(len(first)).double())


def constant(value: float) -> Tensor:
    return torch.full((2, 4, 4), value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("value", "normalization", "expected", "empty"),
    [
        (3.0, "minmax", 0.0, False),
        (3.0, "max", 1.0, False),
        (3.0, "none", 3.0, False),
        (1e-30, "max", 1.0, False),
        (1e30, "minmax", 0.0, False),
        *[(value, how, 0.0, True) for value in (0.0, -3.0) for how in NORMALIZATIONS],
    ],
)
def test_constant_maps(value, normalization, expected, empty):
    found = fixed(constant(value), normalize=normalization)
    assert torch.equal(found.heatmaps, torch.full((2, 16, 16), expected))
    assert found.is_empty.tolist() == [empty, empty]


def test_all_negative_map_is_not_shifted_into_evidence():
    negative = -torch.rand(2, 4, 4, dtype=torch.float64) - 0.1
    for how in NORMALIZATIONS:
        found = fixed(negative, normalize=how)
        assert not found.heatmaps.any()
        assert found.is_empty.all()


def test_one_empty_layer():
    hill = torch.zeros(2, 4, 4, dtype=torch.float64)
    hill[:, 1, 2] = 5
    for fusion, empty in (("mean", False), ("max", False), ("product", True)):
        found = fixed({"block1": hill, "block2": constant(-1)}, ["block1", "block2"], fusion=fusion)
        assert found.is_empty.tolist() == [empty, empty]
        assert bool(found.heatmaps.any()) is not empty
    both = fixed({"block1": constant(-1), "block2": constant(0)}, ["block1", "block2"])
    assert both.is_empty.all()


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_maximum_is_where_the_saliency_has_it(how):
    ramp = torch.arange(16 * 16, dtype=torch.float64).view(16, 16) / 255
    maps = torch.stack([ramp - 0.5, ramp.flip(0, 1)])
    found = fixed(maps, normalize=how).heatmaps
    assert found.flatten(1).argmax(1).tolist() == [255, 0]
    assert found.flatten(1).argmin(1).tolist() == [0, 255]
    if how != "none":
        assert found.flatten(1).amax(1).tolist() == [1, 1]


def test_maps_are_normalized_for_each_image_and_target():
    small, large = torch.rand(2, 1, 4, 4, dtype=torch.float64), 100 * torch.rand(2, 1, 4, 4, dtype=torch.float64)

    class Two(Fixed):
        def saliencies(self, layer: LayerCapture) -> Tensor:
            return torch.cat([small, large], 1)

    targets = torch.tensor([[0, 1], [2, 3]])
    found = Two(blocks(), "block1", maps=None, normalize="max").explain(draw_images(2).double(), targets)
    assert found.heatmaps.shape == (2, 2, 16, 16)
    assert found.is_empty.shape == (2, 2)
    assert torch.equal(found.heatmaps.amax((2, 3)), torch.ones(2, 2))


def test_linear_upsampling_by_hand():
    row = torch.tensor([0.0, 4.0], dtype=torch.float64).expand(1, 2, 2)
    found = Fixed(blocks(), "block1", maps=row).explain(draw_images(1, size=(2, 4)).double()).heatmaps
    # sources at -1/4 (clipped), 1/4, 3/4 and 5/4 (clipped): 0, 1, 3, 4 of 4
    assert found[0].tolist() == [[0, 0.25, 0.75, 1]] * 2

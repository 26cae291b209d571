"""The shared arithmetic: numbers to check by hand, the transcription, types and memory."""

from __future__ import annotations

from inspect import unwrap

import numpy as np
import pytest
import reference as ref
import torch
from allocations import Allocations
from torch import Tensor
from torch.testing import assert_close

from gradcam_kit.functional import finite_probe, fuse, normalize, spatial_mean, spatial_sum, upsample, weighted_sum

SHAPES = [(5,), (3, 4), (2, 3, 2)]
STAGES = (normalize, weighted_sum, upsample, fuse)
HALF = [torch.float16, torch.bfloat16]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_and_sum_by_hand():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -4.0]]]])
    assert spatial_mean(maps).tolist() == [[[[3.0]], [[-1.0]]]]
    assert spatial_sum(maps).tolist() == [[[[12.0]], [[-4.0]]]]
    signal = maps.flatten(2)
    assert spatial_mean(signal).tolist() == [[[3.0], [-1.0]]]
    volume = maps[..., None]
    assert spatial_sum(volume).shape == (1, 2, 1, 1, 1)
    assert spatial_sum(volume).flatten().tolist() == [12.0, -4.0]


def test_weighted_sum_by_hand():
    activations = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]])
    per_channel = torch.tensor([[[2.0], [-1.0]], [[5.0], [7.0]]])
    assert weighted_sum(activations, per_channel).tolist() == [[-1.0, 0.0], [5.0, 7.0]]
    per_position = torch.tensor([[[2.0, 0.0], [-1.0, 1.0]], [[5.0, 9.0], [9.0, 7.0]]])
    assert weighted_sum(activations, per_position).tolist() == [[-1.0, 4.0], [5.0, 7.0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_sum_equals_the_transcription(shape):
    activations, weights = draw(2, 3, *shape), draw(2, 3, *(1 for _ in shape), seed=1)
    found = weighted_sum(activations, weights)
    for i in range(2):
        assert_close(found[i], torch.from_numpy(ref.weighted_sum(weights[i].flatten(), activations[i])))
    everywhere = draw(2, 3, *shape, seed=2)
    expected = torch.from_numpy(np.stack([ref.hires_cam(*pair) for pair in zip(activations, everywhere, strict=True)]))
    assert_close(weighted_sum(activations, everywhere), expected)


def test_weighted_sum_of_one_position():
    activations, weights = draw(2, 3, 1, 1), draw(2, 3, 1, 1, seed=1)
    assert_close(weighted_sum(activations, weights), (activations * weights).sum(1))


@pytest.mark.parametrize("shape", [(50,), (7, 6), (5, 4, 3)])
def test_channel_weights_make_no_weighted_copy(shape):
    activations, weights = draw(2, 16, *shape), draw(2, 16, *(1 for _ in shape))
    with Allocations(activations, weights) as made:
        found = weighted_sum(activations, weights)
    assert max(made.sizes) == found.numel() == activations.numel() // 16
    with Allocations(activations, weights) as made:  # the counter does see such a copy
        (activations * weights).sum(1)
    assert max(made.sizes) == activations.numel()


def test_normalize_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[0.0, 0.0], [0.0, 8.0]]])
    assert normalize(maps).tolist() == [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 1]]]
    assert_close(normalize(maps, "max"), torch.tensor([[[0.2, 0.4], [0.6, 1]], [[0, 0], [0, 1]]]))
    assert normalize(maps, "none") is maps
    assert normalize(torch.tensor([[-3.0, 1.0], [-4.0, -2.0]])).tolist() == [[0, 1], [0, 1]]
    assert normalize(torch.tensor([[2.0, 2.0], [0.0, 0.0]])).tolist() == [[0, 0], [0, 0]]
    assert normalize(torch.tensor([[2.0, 2.0], [0.0, 0.0]]), "max").tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_normalize_equals_the_transcription_at_every_scale(shape, scale):
    maps = scale * draw(4, *shape).abs()
    for how in ("minmax", "max"):
        expected = np.stack([ref.normalize(one, how) for one in maps])
        assert_close(normalize(maps, how), torch.from_numpy(expected))
        single = normalize(maps.float(), how)
        assert single.amax().item() == 1
        assert_close(single, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6)


def test_rounding_noise_is_not_structure():
    flat = torch.full((1, 1000), 0.1).cumsum(1) / torch.arange(1, 1001)  # means of equal numbers
    assert len(flat.unique()) > 1
    assert not normalize(flat).any()
    gentle = torch.tensor([[1.0, 1.0 + 1e-4]])
    assert normalize(gentle).tolist() == [[0, 1]]


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("change", [lambda n: 3 * n + 1, lambda n: n, lambda n: n - 1, lambda n: 8 * n])
def test_upsample_equals_the_transcription(old, change):
    maps, new = draw(3, *old), tuple(change(n) for n in old)
    expected = np.stack([ref.upsample(one, new) for one in maps])
    assert_close(upsample(maps, new), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_upsample_by_hand():
    assert upsample(torch.tensor([[0.0, 4.0]]), (4,)).tolist() == [[0, 1, 3, 4]]
    assert upsample(torch.tensor([[[0.0, 4.0]]]), (1, 4)).tolist() == [[[0, 1, 3, 4]]]
    assert upsample(torch.tensor([[[[0.0]], [[4.0]]]]), (4, 1, 1)).flatten().tolist() == [0, 1, 3, 4]


def test_fuse_by_hand():
    maps = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 4.0]])]
    assert fuse(maps).tolist() == fuse(maps, "mean").tolist() == [[2, 2]]
    assert fuse(maps, "max").tolist() == [[3, 4]]
    assert fuse(maps, "product").tolist() == [[6, 0]]
    for how in ("mean", "max", "product"):
        assert fuse(maps[:1], how).tolist() == [[1, 2]]
    assert [one.tolist() for one in maps] == [[[1, 2]], [[3, 0]], [[2, 4]]]


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype):
    maps, tolerance = draw(2, 3, 4, 4).abs(), 2e-2
    half, weights = maps.to(dtype), draw(2, 3, 1, 1, seed=1)
    assert spatial_mean(half).dtype == spatial_sum(half).dtype == dtype
    assert_close(spatial_mean(half).double(), spatial_mean(maps), rtol=tolerance, atol=tolerance)
    assert_close(spatial_sum(half).double(), spatial_sum(maps), rtol=tolerance, atol=tolerance)
    found = weighted_sum(half, weights.to(dtype))
    assert_close(found.double(), weighted_sum(maps, weights), rtol=tolerance, atol=tolerance)
    for how in ("minmax", "max"):
        assert_close(normalize(half[:, 0], how).double(), normalize(maps[:, 0], how), rtol=tolerance, atol=tolerance)
    fused = fuse([half[:, 0], half[:, 1]], "max")
    assert torch.equal(fused, torch.maximum(half[:, 0], half[:, 1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_batch(shape):
    maps, size = torch.zeros(0, *shape), tuple(2 * n for n in shape)
    for how in ("minmax", "max", "none"):
        assert normalize(maps, how).shape == maps.shape
    assert upsample(maps, size).shape == (0, *size)
    assert fuse([maps, maps], "product").shape == maps.shape
    activations = torch.zeros(0, 3, *shape)
    assert spatial_mean(activations).shape == (0, 3, *(1 for _ in shape))
    assert weighted_sum(activations, spatial_mean(activations)).shape == maps.shape


def test_finite_is_one_number_per_sample():
    maps = torch.ones(4, 2, 3)
    maps[1, 0, 2], maps[2, 1, 1] = torch.nan, -torch.inf
    assert torch.isfinite(finite_probe(maps)).tolist() == [True, False, False, True]
    half = torch.full((1, 100000), 60.0, dtype=torch.float16)  # its sum is beyond the range of float16
    assert finite_probe(half).tolist() == [6e6]
    both = torch.tensor([[torch.inf, -torch.inf]])
    assert not torch.isfinite(finite_probe(both)).any()


def test_inputs_stay_unchanged():
    maps = draw(2, 3, 4, 4)
    before = maps.clone()
    weighted_sum(maps, spatial_mean(maps))
    for how in ("minmax", "max", "none"):
        upsample(normalize(maps[:, 0], how), (9, 9))
    fuse([maps[:, 0], maps[:, 1]], "product")
    assert torch.equal(maps, before)


@pytest.mark.parametrize(("size", "method"), [((9,), "max"), ((9, 8), "minmax"), ((5, 6, 7), "max")])
def test_compiled_as_one_graph_it_gives_the_same_maps(size: tuple[int, ...], method: str) -> None:
    # Without the checks of shapes, which only the tests add.
    normalize, weighted_sum, upsample, fuse = map(unwrap, STAGES)

    def last_stage(activations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        maps = normalize(weighted_sum(activations, weights).clamp(min=0), method)
        return normalize(fuse([upsample(maps, size), upsample(maps.sqrt(), size)]), method)

    positions = tuple(length // 2 for length in size)
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(3, 4, *positions, generator=generator)
    weights = torch.randn(3, 4, *(1 for _ in size), generator=generator)
    compiled = torch.compile(last_stage, fullgraph=True, backend="aot_eager")  # a graph break is an error
    torch.testing.assert_close(compiled(activations, weights), last_stage(activations, weights))

"""Statistics and histograms against numpy in float64: any split, any order, any layout in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradcam_kit.diagnostics.maths import histogram as histograms
from gradcam_kit.diagnostics.maths.statistics import Axes, Moments, moments, summarize


def close(found: Moments, values: np.ndarray, rel: float) -> None:
    assert found.finite == values.size
    assert found.mean == pytest.approx(values.mean(), rel=rel, abs=rel * abs(values).max())
    assert found.std == pytest.approx(values.std(), rel=rel)
    assert (found.minimum, found.maximum) == (values.min(), values.max())


def test_a_batch_by_hand() -> None:
    found, summary = moments(torch.tensor([[[1.0, 2.0], [3.0, -4.0]], [[5.0, 0.0], [7.0, 0.0]]]), unit=1)
    assert summary.pooled.tolist() == [[3.0, -1.0], [5.0, 7.0]]
    assert (summary.low.tolist(), summary.high.tolist()) == ([0.0, -4.0], [5.0, 7.0])
    assert (found.n, found.elements, found.mean, found.minimum, found.maximum) == (2, 8, 1.75, -4.0, 7.0)
    assert found.m2 == pytest.approx(1 + 4 + 9 + 16 + 25 + 49 - 8 * 1.75**2)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4, -300.0])
@pytest.mark.parametrize("cuts", [[], [1], [5, 6, 20], [2, 3, 30, 39]])
def test_any_split_and_order_in_float64(offset: float, cuts: list[int]) -> None:
    x = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    parts = torch.tensor_split(x, cuts)
    rng = np.random.default_rng(len(cuts))
    for order in (range(len(parts)), rng.permutation(len(parts))):
        found = Moments()
        for i in order:
            found = found.merge(moments(parts[int(i)], unit=1)[0])
        close(found, x.numpy(), 1e-12)
        assert found.n == 40


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1.0, 100.0), (1.0, 1e4), (1e-3, 1e2), (1e15, 0.0)])
def test_float32_where_the_short_form_cancels(scale: float, offset: float) -> None:
    x = torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(1)) * scale + offset
    close(moments(x, unit=1)[0], x.double().numpy(), 1e-5)


def test_millions_of_float32() -> None:
    x = torch.randn(32, 16, 64, 65, generator=torch.Generator().manual_seed(1)) + 5
    close(moments(x, unit=1)[0], x.double().numpy(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    x = (torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 1000).to(dtype)
    close(moments(x, unit=1)[0], x.double().numpy(), 1e-5)


def test_not_a_number_is_counted_and_left_out() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    expected = x[1:].double().numpy().copy()
    x[0] = torch.tensor([math.nan, math.inf, -math.inf, math.nan])
    found, summary = moments(x, unit=1)
    close(found, expected, 1e-6)
    assert (found.nan, found.inf, found.elements, found.n) == (2, 2, 200, 50)
    assert torch.equal(summary.high, x[1:].amax(0))
    nothing, _ = moments(torch.full((2, 3), math.nan), unit=1)
    assert (nothing.nan, nothing.finite) == (6, 0)
    assert math.isnan(nothing.std)
    assert nothing.merge(found).mean == found.mean


@pytest.mark.parametrize("unit", [1, -1, None])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 4, 5), (6, 4, 5, 3), (6, 4, 2, 3, 2), ()])
@pytest.mark.parametrize("order", ["as it is", "channels last", "transposed", "every other"])
def test_every_layout(shape: tuple[int, ...], unit: int | None, order: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if order == "channels last" and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    if order == "transposed" and x.ndim > 2:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if order == "every other" and x.ndim > 1:
        x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64)[..., ::2]
    axes = Axes.of(x.shape, unit)
    summary = summarize(x, axes)
    axis = axes.unit
    by_unit = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x[:, None]
    assert torch.equal(summary.low, by_unit.amin(1))
    assert torch.equal(summary.high, by_unit.amax(1))
    assert summary.pooled.shape == (axes.n, axes.units)
    torch.testing.assert_close(summary.pooled.sum(0), by_unit.sum(1))
    flat = histograms.in_memory_order(x)
    assert sorted(flat.tolist()) == sorted(x.reshape(-1).tolist())


def reference_bin(value: float) -> int:
    bits = int(np.float32(value).view(np.uint32))
    return bits >> 21


def test_bins_are_the_upper_bits() -> None:
    values = [0.0, -0.0, 1.0, 1.25, -1.0, 3.4e38, math.inf, -math.inf, math.nan, 1e-45, 0.3]
    counts = histograms.histogram(torch.tensor(values)).numpy()
    expected = np.zeros(2048, dtype=np.int64)
    for value in values:
        expected[reference_bin(value)] += 1
    assert np.array_equal(counts, expected)
    assert histograms.zeros(counts) == 3  # with the subnormal
    assert histograms.not_finite(counts) == 3
    assert histograms.ordered(counts).sum() == len(values) - 3


def test_edges_hold_their_values() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * torch.logspace(-8, 8, 5000)
    counts = histograms.ordered(histograms.histogram(x).numpy())
    edges = histograms.edges()
    assert len(edges) == len(counts) + 1
    assert (np.diff(edges) > 0).all()
    assert np.array_equal(counts, np.histogram(x.double().numpy(), edges)[0])


def test_merging_is_addition_and_quantiles_are_within_a_bin() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(4))
    whole = histograms.histogram(x)
    parts = sum(histograms.histogram(part) for part in x.split(777))
    assert isinstance(parts, Tensor)
    assert torch.equal(whole, parts)
    for q in (0.01, 0.25, 0.5, 0.9, 1.0):
        assert histograms.quantile(whole.numpy(), q) == pytest.approx(float(x.quantile(q)), rel=0.13, abs=0.01)
    assert math.isnan(histograms.quantile(np.zeros(2048, dtype=np.int64), 0.5))


def test_rows_of_many_histograms() -> None:
    x = torch.randn(300, generator=torch.Generator().manual_seed(4))
    rows = torch.arange(300) % 3
    counts = torch.zeros(3, 2048, dtype=torch.int64)
    histograms.add_counts(counts, rows, x)
    for row in range(3):
        assert torch.equal(counts[row], histograms.histogram(x[rows == row]))


def test_coarse_bins() -> None:
    values = torch.tensor([0.0, 1e-12, 1.0, 3.0, -1.0, 1e9, math.nan, 2.0**-24])
    coarse = histograms.coarsen(histograms.histogram(values).numpy())
    edges = histograms.coarse_edges()
    assert coarse.sum() == len(values)
    assert coarse[-1] == 1
    assert len(edges) == len(coarse)
    at = {float(value): int(np.searchsorted(edges, value, side="right")) - 1 for value in (1.0, 3.0, 2.0**-24)}
    assert coarse[at[1.0]] == 2
    assert at[1.0] == at[3.0]
    assert coarse[at[2.0**-24]] == 1
    assert coarse[17] == 2


@pytest.mark.parametrize("shape", [(32, 64, 16, 16), (1, 10), (3,), (7, 4096), (128, 1000), (32, 197, 192)])
def test_samples_are_spread_and_rotate(shape: tuple[int, ...]) -> None:
    stride = histograms.stride_of(shape)
    elements = math.prod(shape)
    assert all(math.gcd(stride, number) == 1 for number in (elements, *shape) if number > 1)
    x = torch.arange(elements, dtype=torch.float64).view(shape)
    first, second = (histograms.take_sample(x, step, stride) for step in (1, 2))
    assert len(first) <= 4097
    assert len(first) == elements or len(first) > 1500
    assert stride == 1 or not torch.equal(first[:100], second[:100])
    assert first.data_ptr() != x.data_ptr()

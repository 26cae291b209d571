"""How sure means and differences are: networks are drawn again, then the images of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.ground_truth.bootstrap import DRAWS, Pair, differences, summarize
from gradcam_kit.metrics import paired_differences


def test_intervals_leave_out_what_is_undefined_and_count_it() -> None:
    values = torch.cat([torch.linspace(0, 1, 40), torch.tensor([math.nan, math.nan])])
    cell = summarize([values], 0)
    assert cell == summarize([values], 0)
    assert (cell.n, cell.empty, cell.networks) == (40, 2, 1)
    assert cell.mean == pytest.approx(0.5)
    # The standard error is 0.047.
    assert 0.38 < cell.low < 0.45
    assert 0.55 < cell.high < 0.62
    assert summarize([torch.tensor([math.nan])], 0).n == 0


def test_networks_that_differ_make_the_interval_wide_however_many_images_they_saw() -> None:
    """Of two networks both draws are the same one in half of the cases, and the mean is then 0 or 1."""
    cell = summarize([torch.zeros(500), torch.ones(500)], 0)
    assert (cell.mean, cell.low, cell.high, cell.networks) == (0.5, 0.0, 1.0, 2)
    together = summarize([torch.cat([torch.zeros(500), torch.ones(500)])], 0)
    assert together.high - together.low < 0.07


def test_the_interval_is_that_of_loops_over_networks_and_images() -> None:
    generator = np.random.default_rng(1)
    scores = [torch.from_numpy(generator.normal(place, 0.5, 8)) for place in (0.0, 0.2, 0.5, 0.3)]
    scores[2][:3] = math.nan
    drawn = []
    for _ in range(4000):
        images = [generator.choice(scores[network].numpy(), 8) for network in generator.integers(4, size=4)]
        drawn.append(np.nanmean(np.concatenate(images)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    cell = summarize(scores, 0)
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=0.03)


def test_pairs_are_tested_on_the_images_that_both_have_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    base = [torch.rand(12, generator=generator) for _ in range(5)]
    noise = [0.05 * torch.randn(12, generator=generator) for _ in range(5)]
    better = [(one + 0.2 + more)[:6] for one, more in zip(base, noise, strict=True)]
    columns = {"a": {"good": better, "bad": base, "same": [one + more for one, more in zip(base, noise, strict=True)]}}
    pairs = [Pair("a", "good", "bad"), Pair("a", "same", "bad"), Pair("a", "good", "none"), Pair("b", "good", "bad")]
    first, second = differences(columns, pairs, 0)
    assert (first.n, first.networks, first.agreeing) == (30, 5, 5)
    assert first.difference == pytest.approx(0.2, abs=0.03)
    assert 0 < first.low < first.difference < first.high
    assert first.p == 1 / (DRAWS + 1)
    assert first.p_holm == 2 * first.p, "the smallest p counts as often as there are pairs that could be tested"
    assert second.p_holm == second.p > 0.05
    assert second.low < 0 < second.high


def test_one_network_is_the_paired_comparison_of_images() -> None:
    generator = np.random.default_rng(0)
    values = {"first": generator.normal(0.1, 1, 60), "second": generator.normal(0, 1, 60)}
    columns = {"a": {name: [torch.from_numpy(one)] for name, one in values.items()}}
    [found] = differences(columns, [Pair("a", "first", "second")], 0)
    [expected] = paired_differences(values)
    assert found.difference == pytest.approx(expected.difference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found.p == pytest.approx(expected.p, abs=0.02)


def test_an_empty_map_is_left_out_of_the_difference_and_counts_as_0_beside_it() -> None:
    nan = math.nan
    columns = {"a": {"first": [torch.tensor([1.0, 1.0, nan, nan])], "second": [torch.full((4,), 0.5)]}}
    [found] = differences(columns, [Pair("a", "first", "second")], 0)
    assert (found.difference, found.n) == (0.5, 2)
    assert found.low_with_empty < 0 < found.high_with_empty
    [nothing] = differences(
        {"a": {"first": [torch.full((3,), nan)], "second": [torch.ones(3)]}}, [Pair("a", "first", "second")], 0
    )
    assert nothing.n == 0
    assert math.isnan(nothing.p_holm)

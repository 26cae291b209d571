"""How sure means and differences are: networks are the observations, or the pictures of one network."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.ground_truth.uncertainty import Pair, cluster_means, differences, estimate, summarize
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


def test_networks_are_the_observations_however_many_pictures_they_saw() -> None:
    scores = [torch.full((500,), place) for place in (0.2, 0.3, 0.1, 0.6, 0.4)]
    cell = summarize(scores, 0)
    error = stats.sem([0.2, 0.3, 0.1, 0.6, 0.4])
    expected = stats.t.interval(0.95, 4, loc=0.32, scale=error)
    assert (cell.mean, cell.low, cell.high) == pytest.approx((0.32, *expected), abs=1e-6)
    assert cell.networks == 5
    together = summarize([torch.cat(scores)], 0)
    assert together.high - together.low < 0.03
    assert math.isnan(together.cluster_low)
    uneven = summarize([torch.zeros(30), torch.ones(10)], 0)
    assert uneven.mean == 0.5
    assert (uneven.low, uneven.high) == (0, 1), "no share is outside"


def test_p_of_networks_is_that_of_the_paired_t_test() -> None:
    better, worse = [0.47, 0.32, 0.36, 0.53, 0.47], [0.0, 0.3, 0.3, 0.3, 0.3]
    columns = {"a": {"good": [torch.full((4,), one).double() for one in better],
                     "bad": [torch.full((4,), one).double() for one in worse]}}  # fmt: skip
    [found] = differences(columns, [Pair("a", "good", "bad")], 0)
    assert found.p == pytest.approx(stats.ttest_rel(better, worse).pvalue)
    assert found.p == pytest.approx(0.077, abs=0.003)
    assert (found.low, found.high) == pytest.approx((-0.03, 0.41), abs=0.005)
    assert (found.agreeing, found.observations) == (5, 5)


def test_of_deletion_less_is_better_and_an_empty_map_is_the_worst() -> None:
    nan = math.nan
    good, bad = ([torch.tensor(one, dtype=torch.float64)] for one in ([0.1, 0.2, nan], [0.4, 0.3, 0.5]))
    columns = {"a, deletion": {"good": good, "bad": bad}, "a": {"good": good, "bad": bad}}
    fallen, share = differences(columns, [Pair("a, deletion", "good", "bad"), Pair("a", "good", "bad")], 0)
    assert (fallen.difference, share.difference) == (pytest.approx(0.2), pytest.approx(-0.2))
    five = {"a, deletion": {"good": [torch.cat(3 * good)] * 2, "bad": [torch.cat(3 * bad)] * 2}}
    [found] = differences(five, [Pair("a, deletion", "good", "bad")], 0)
    assert found.low_with_empty == pytest.approx((0.3 + 0.1 - 0.5) / 3)


def test_a_margin_is_tested_as_a_mean_that_is_further_from_0() -> None:
    own, mask = [0.25, 0.27, 0.24, 0.29, 0.26], [0.25, 0.26, 0.26, 0.27, 0.26]
    columns = {"a, deletion": {"own": [torch.full((4,), one).double() for one in own],
                               "mask": [torch.full((4,), one).double() for one in mask]}}  # fmt: skip
    plain, within = differences(columns, [Pair("a, deletion", "own", "mask", margin) for margin in (0.0, 0.05)], 0)
    assert plain.p == pytest.approx(stats.ttest_rel(mask, own).pvalue)
    assert within.p == pytest.approx(stats.ttest_1samp(np.subtract(mask, own), -0.05).pvalue, rel=1e-4)
    assert plain.p > 0.5 > 0.01 > within.p
    assert (plain.agreeing, within.agreeing) == (1, 5)
    assert (within.difference, within.low) == (plain.difference, plain.low), "the interval is that of the difference"


def test_the_interval_has_the_truth_as_often_as_it_says_and_the_cluster_bootstrap_seldomer() -> None:
    generator = np.random.default_rng(0)
    inside, p_small, cluster = [], [], []
    for _ in range(600):
        values = [generator.normal(generator.normal(), 1, 12) for _ in range(5)]
        found = estimate(values, 0)
        inside.append(found.low <= 0 <= found.high)
        p_small.append(found.p < 0.05)
        low, high = np.quantile(cluster_means(values, 0), [0.025, 0.975])
        cluster.append(low <= 0 <= high)
    assert 0.93 < np.mean(inside) < 0.97
    assert 0.03 < np.mean(p_small) < 0.07
    assert 0.82 < np.mean(cluster) < 0.88, "docs/ground-truth.md says about 85 %"


def test_pictures_of_one_network_are_tested_by_flips_of_signs() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.15, 0.25, -0.05])
    found = estimate([values], 0)
    flips = [abs(np.dot(signs, values)) >= values.sum() - 1e-9 for signs in product([-1, 1], repeat=6)]
    assert found.p == np.mean(flips) < 0.1
    expected = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    fewer = estimate([values[:4]], 0)
    assert fewer.p == 2 / 16
    assert math.isnan(fewer.low)
    assert math.isnan(fewer.high)


def test_targets_of_one_picture_are_one_observation() -> None:
    nan = math.nan
    scores = torch.tensor([[0.0, 1.0], [1.0, nan], [nan, nan], [0.2, 0.4], [0.4, 0.6], [0.1, 0.1], [0.9, 0.9]])
    cell = summarize([scores], 0)
    assert cell.mean == pytest.approx(np.mean([0.5, 1.0, 0.3, 0.5, 0.1, 0.9]))
    assert (cell.n, cell.empty, cell.empty_maps) == (6, 1, pytest.approx(3 / 14))
    columns = {"a": {"first": [scores], "second": [torch.zeros(7, 2)]}}
    [found] = differences(columns, [Pair("a", "first", "second")], 0)
    assert (found.n, found.observations, found.difference) == (6, 6, pytest.approx(cell.mean))
    assert found.p == 2 / 64


def test_the_cluster_interval_is_that_of_loops_over_networks_and_images() -> None:
    generator = np.random.default_rng(1)
    scores = [torch.from_numpy(generator.normal(place, 0.5, 8)) for place in (0.0, 0.2, 0.5, 0.3)]
    scores[2][:3] = math.nan
    drawn = []
    for _ in range(4000):
        images = [generator.choice(scores[network].numpy(), 8) for network in generator.integers(4, size=4)]
        drawn.append(np.nanmean(np.concatenate(images)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    cell = summarize(scores, 0)
    assert (cell.cluster_low, cell.cluster_high) == pytest.approx((low, high), abs=0.03)
    assert cell.low < cell.cluster_low < cell.cluster_high < cell.high


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
    assert 0 < first.p < 1e-3
    assert first.p_holm == 2 * first.p, "the smallest p counts as often as there are pairs that could be tested"
    assert second.p_holm == second.p > 0.05
    assert second.low < 0 < second.high


def test_one_network_has_the_paired_differences_of_its_pictures() -> None:
    generator = np.random.default_rng(0)
    values = {"first": generator.normal(0.1, 1, 60), "second": generator.normal(0, 1, 60)}
    columns = {"a": {name: [torch.from_numpy(one)] for name, one in values.items()}}
    [found] = differences(columns, [Pair("a", "first", "second")], 0)
    [expected] = paired_differences(values)
    assert found.difference == pytest.approx(expected.difference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.p == expected.p


def test_an_empty_map_is_left_out_of_the_difference_and_counts_as_0_beside_it() -> None:
    nan = math.nan
    columns = {"a": {"first": [torch.tensor([1.0] * 5 + [nan] * 5)], "second": [torch.full((10,), 0.5)]}}
    [found] = differences(columns, [Pair("a", "first", "second")], 0)
    assert (found.difference, found.n) == (0.5, 5)
    assert found.low_with_empty < 0 < found.high_with_empty
    [nothing] = differences(
        {"a": {"first": [torch.full((3,), nan)], "second": [torch.ones(3)]}}, [Pair("a", "first", "second")], 0
    )
    assert nothing.n == 0
    assert math.isnan(nothing.p_holm)

"""Paired differences: against scipy, loops, and cases that fit on a hand."""

from __future__ import annotations

from inspect import unwrap
from itertools import product

import numpy as np
import pytest
from scipy.stats import bootstrap, wilcoxon

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.metrics.paired import bootstrap_means, paired_differences, wilcoxon_p
from gradcam_kit.significance import holm

RNG = np.random.default_rng(0)


def test_holm_by_hand() -> None:
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06, and 0.5 alone.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.5]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.9]) == [1, 1]
    found = holm([float("nan"), 0.02])
    assert np.isnan(found[0])
    assert found[1] == 0.02
    assert holm([]) == []


@pytest.mark.parametrize("rounded", [False, True])
def test_wilcoxon_is_that_of_scipy(rounded: bool) -> None:
    for n in (5, 30, 200):
        differences = RNG.normal(0.2, 1, n)
        differences = np.round(differences) if rounded else differences
        expected = wilcoxon(differences, method="approx", correction=False, zero_method="wilcox").pvalue
        assert wilcoxon_p(differences) == pytest.approx(expected, rel=1e-10)
    assert wilcoxon_p(np.zeros(4)) == 1


def test_the_interval_is_that_of_scipy() -> None:
    differences = RNG.normal(0.3, 1, (40, 2))
    low, high, _ = bootstrap_means(differences, draws=20_000)
    for column, own in enumerate(differences.T):
        expected = bootstrap((own,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
        assert low[column] == pytest.approx(expected.low, abs=0.02)
        assert high[column] == pytest.approx(expected.high, abs=0.02)


def test_interval_and_p_are_those_of_all_samples() -> None:
    """Of four differences there are 256 samples with replacement."""
    differences = np.array([1.0, 2.0, 4.0, -1.0])
    means = np.array([np.mean(one) for one in product(differences, repeat=4)])
    low, high, p = (float(one[0]) for one in bootstrap_means(differences[:, None], draws=50_000, level=0.8))
    assert (low, high) == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=0.26)
    assert p == pytest.approx(np.mean(np.abs(means - 1.5) >= 1.5), abs=0.01)


def test_pairs_of_methods() -> None:
    base = RNG.normal(size=60)
    values = {"good": base + 1 + RNG.normal(size=60) / 10, "same": base, "bad": base - 1 + RNG.normal(size=60) / 10}
    found = paired_differences(values, draws=1000)
    assert [(one.first, one.second) for one in found] == [("good", "same"), ("good", "bad"), ("same", "bad")]
    for one in found:
        assert one.low < one.difference < one.high
        assert one.difference == pytest.approx(np.mean(values[one.first] - values[one.second]))
        assert one.p == pytest.approx(1 / 1001)
        assert one.p_holm == pytest.approx(3 / 1001)
        assert one.count == 60
    (tested,) = paired_differences(values, [("good", "bad")], test="wilcoxon")
    assert tested.p == tested.p_holm == wilcoxon_p(values["good"] - values["bad"])


def test_images_without_a_number_by_either_do_not_count() -> None:
    values = {name: RNG.normal(size=9) for name in "abc"}
    values["a"][0], values["b"][1], values["c"][2:] = np.nan, np.nan, np.nan
    found = {(one.first, one.second): one for one in paired_differences(values, draws=500)}
    assert [one.count for one in found.values()] == [7, 1, 1]
    alone = paired_differences({"a": values["a"][2:], "b": values["b"][2:]}, draws=500)[0]
    assert found["a", "b"] == alone
    assert np.isnan(found["a", "c"].p)
    assert found["a", "b"].p_holm == found["a", "b"].p, "a pair without images is no comparison"
    values["b"][:] = np.nan
    assert paired_differences(values)[0].count == 0


def test_the_same_values_do_not_differ() -> None:
    values = RNG.normal(size=20)
    found = paired_differences({"a": values, "b": values.copy()})[0]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_what_is_refused() -> None:
    values = {"a": np.zeros(3), "b": np.zeros(3)}
    with pytest.raises(ShapeError, match="a 3, b 2; expected the same images"):
        paired_differences({"a": np.zeros(3), "b": np.zeros(2)})
    with pytest.raises(OptionError, match="no values of 'c', only of a, b"):
        paired_differences(values, [("a", "c")])
    with pytest.raises(OptionError, match="level is 95"):
        paired_differences(values, level=95.0)
    with pytest.raises(OptionError, match="test is 't'"):
        unwrap(paired_differences)(values, test="t")

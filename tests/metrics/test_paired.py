"""Paired differences: against scipy, loops, and cases that fit on a hand."""

from __future__ import annotations

from inspect import unwrap
from itertools import product

import numpy as np
import pytest
from scipy.stats import PermutationMethod, permutation_test, ttest_1samp, wilcoxon

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.metrics import paired
from gradcam_kit.metrics.paired import (
    EXACT,
    FEWEST,
    PairedDifference,
    PairedTest,
    mean_interval,
    paired_differences,
    sign_flip_p,
    wilcoxon_p,
)
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
    for n in (5, 12, 30, 200):
        differences = RNG.normal(0.2, 1, n)
        differences = np.round(differences) if rounded else differences
        method = PermutationMethod(n_resamples=5000) if n <= EXACT else "approx"  # at most 4096: all are tried
        expected = wilcoxon(differences, method=method, correction=False, zero_method="wilcox").pvalue
        assert wilcoxon_p(differences) == pytest.approx(expected, rel=1e-10)
    assert wilcoxon_p(np.zeros(4)) == 1
    assert wilcoxon_p(np.arange(1.0, 6)) == 2 / 32, "the normal approximation gives 0.043"


def test_the_interval_is_that_of_scipy() -> None:
    for n in (2, 3, 40):
        differences = RNG.normal(0.3, 1, n)
        expected = ttest_1samp(differences, 0).confidence_interval(0.8)
        assert mean_interval(differences, 0.8) == pytest.approx((expected.low, expected.high))
    assert np.isnan(mean_interval(differences[:1])).all()


@pytest.mark.parametrize("n", [2, 5, 12])
def test_few_images_are_tested_by_all_flips(n: int) -> None:
    for column in (RNG.normal(0.5, 1, n), np.round(RNG.normal(0.5, 1, n))):
        expected = permutation_test((column,), np.sum, permutation_type="samples", n_resamples=5000).pvalue
        assert sign_flip_p([column]) == [pytest.approx(expected)]
    assert sign_flip_p([np.arange(1.0, n + 1)]) == [2 / 2**n], "all of one sign: this choice, and the opposite one"


def test_many_images_are_tested_by_drawn_flips() -> None:
    column = RNG.normal(0.4, 1, 16)
    signs = np.array(list(product((-1, 1), repeat=16)))
    expected = np.mean(np.abs(signs @ column) >= abs(column.sum()) - 1e-9)
    assert 0.02 < expected < 0.6
    assert sign_flip_p([column], draws=40_000)[0] == pytest.approx(expected, abs=0.01)


def test_other_columns_change_no_p(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = list(RNG.normal(0.4, 1, (30, 17)))
    alone = sign_flip_p(columns[:1], 500)
    monkeypatch.setattr(paired, "_CHUNK", 1000)  # in parts, the smaller the more columns
    assert sign_flip_p([*columns, np.ones(20)], 500)[:1] == sign_flip_p(columns[:5], 500)[:1] == alone


def test_p_of_more_images_than_are_flipped_one_by_one() -> None:
    """With so many images it is nearly that of the t test."""
    rng = np.random.default_rng(3)
    values = {str(mean): rng.normal(mean, 1, 3000) for mean in (0.02, 0.04, 0.05)} | {"zero": np.zeros(3000)}
    found = paired_differences(values, [(name, "zero") for name in list(values)[:3]], draws=20_000)
    expected = [ttest_1samp(values[one.first], 0).pvalue for one in found]
    assert [one.p for one in found] == pytest.approx(expected, rel=0.4)
    assert 1e-3 < min(expected) < 0.05 < max(expected) < 0.9


def many(columns: np.ndarray) -> list[PairedDifference]:
    """Compare each row with zeros."""
    values = {str(place): column for place, column in enumerate(columns)} | {"zero": np.zeros(columns.shape[1])}
    return paired_differences(values, [(str(place), "zero") for place in range(len(columns))], draws=500)


@pytest.mark.parametrize("test", ["sign-flip", "wilcoxon"])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_too_few_images_are_never_significant(n: int, test: PairedTest) -> None:
    values = {"a": np.linspace(1, 2, n), "b": np.zeros(n)}
    [found] = paired_differences(values, test=test)
    assert found.p == 2 / 2**n
    assert n < FEWEST


@pytest.mark.parametrize(("n", "skewed"), [(3, 0), (5, 0), (6, 0.07), (8, 0.09), (20, 0.08)])
def test_without_a_difference_p_is_rarely_small(n: int, skewed: float) -> None:
    rng = np.random.default_rng(1)
    found = [one.p < 0.05 for one in many(rng.normal(size=(3000, n)))]
    assert np.mean(found) <= 0.06
    found = [one.p < 0.05 for one in many(rng.exponential(size=(3000, n)) - 1)]
    assert np.mean(found) == pytest.approx(skewed, abs=0.015), "as the head of the module says"


@pytest.mark.parametrize(("n", "skewed"), [(5, 0.88), (10, 0.90), (30, 0.925)])
def test_the_interval_covers_the_mean(n: int, skewed: float) -> None:
    rng = np.random.default_rng(2)
    for columns, expected in ((rng.normal(size=(4000, n)), 0.95), (rng.exponential(size=(4000, n)) - 1, skewed)):
        covered = np.mean([one.low <= 0 <= one.high for one in many(columns)])
        assert covered == pytest.approx(expected, abs=0.015), "as the head of the module says"


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
    with pytest.raises(OptionError, match="pairs contain 'c', which has no values; expected a or b"):
        paired_differences(values, [("a", "c")])
    with pytest.raises(OptionError, match="level is 95"):
        paired_differences(values, level=95.0)
    with pytest.raises(OptionError, match="test is 't'"):
        unwrap(paired_differences)(values, test="t")

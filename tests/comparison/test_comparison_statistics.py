"""Paired differences of the methods of a comparison, and whether its metrics agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import images, tiny

from gradcam_kit import compare
from gradcam_kit.comparison.measuring import RANDOM_DRAWS, mean_of_draws
from gradcam_kit.comparison.statistics import agreement_rows, pair_lines, pair_rows
from gradcam_kit.errors import OptionError
from gradcam_kit.metrics import (
    BASELINES,
    METRICS,
    MetricInput,
    MetricResult,
    Status,
    paired_differences,
    rank_agreement,
)

NAMES = ("entropy", "sparseness", "relative-representation-stability")


def test_pairs_and_agreement_of_a_comparison() -> None:
    found = compare(tiny(), images(4), ["grad-cam", "layer-cam"], "relu1", metrics=NAMES)
    numbers = found.numbers()
    methods = ["grad-cam", "layer-cam"]
    assert set(found.pairs["metric"]) == set(NAMES)
    for name in NAMES:
        rows = [row for row in found.pair_rows() if row["metric"] == name]
        assert (rows[0]["first"], rows[0]["second"]) == ("grad-cam", "layer-cam")
        assert {row["first"] for row in rows} == set(methods)
        assert {row["second"] for row in rows[1:]} == {"random", "center", "edges"}, "maps of ones do not count"
        table = found.table.pivot(index="image", columns="method", values=name)
        assert rows[0]["difference"] == pytest.approx((table["grad-cam"] - table["layer-cam"]).mean(), rel=1e-5)
        assert rows[0]["count"] == 4
        pairs = [(row["first"], row["second"]) for row in rows]
        expected = paired_differences(numbers[name], pairs, draws=2000)
        assert [row["low"] for row in rows] == [one.low for one in expected]
    agreement = found.agreement
    assert list(agreement.columns) == [*NAMES, "reliability"]
    labels = [*methods, "random", "center", "edges"]
    tables = {name: torch.from_numpy(np.stack([numbers[name][label] for label in labels])) for name in NAMES}
    expected = rank_agreement(tables, [name for name in NAMES if METRICS[name].better == "lower"])
    np.testing.assert_allclose(agreement[list(NAMES)].to_numpy(), expected.consistency.numpy())


def test_several_targets_of_an_image_count_once() -> None:
    found = compare(tiny(), images(2), ["grad-cam", "layer-cam"], "relu1", targets=[[0, 1], [2, 3]], metrics="entropy")
    own = found.table[found.table["method"] == "grad-cam"]
    expected = own.groupby("image", sort=False)["entropy"].mean()
    np.testing.assert_allclose(found.numbers()["entropy"]["grad-cam"], expected, rtol=1e-6)


def test_lines_say_the_interval_and_stop() -> None:
    rng = np.random.default_rng(0)
    numbers = {f"m{i}": rng.normal(i, 1, 9) for i in range(6)}
    head, *lines = pair_lines("irof", numbers)
    assert "corrected by Holm" in head
    assert lines[0].startswith("irof: m0 - m1 = ")
    assert lines[0].endswith("9 images")
    assert (len(lines), lines[-1]) == (13, "irof: and 3 more pairs")
    assert pair_lines("irof", {name: one[:1] for name, one in numbers.items()}) == []


def test_lines_beside_baselines_are_not_crowded_out_and_begin_with_the_random_one() -> None:
    rng = np.random.default_rng(0)
    numbers = {f"m{i}": rng.normal(i, 1, 9) for i in range(6)} | {"edges": rng.normal(0, 1, 9), "random": np.zeros(9)}
    _, *lines = pair_lines("irof", numbers, ["random", "edges"])
    assert lines[12] == "irof: and 3 more pairs"
    assert lines[13] == "irof: random = 0 [0, 0], mean over 5 draws and 9 images"
    beside = lines[14:]
    assert [line.partition(" = ")[0] for line in beside] == [
        f"irof: m{i} - {name}" for name in ("random", "edges") for i in range(6)
    ]


@pytest.mark.parametrize("n", [2, 5, 6])
def test_too_few_images_are_said_to_be_too_few(n: int) -> None:
    numbers = {"a": np.linspace(1, 2, n), "b": np.zeros(n)}
    line = pair_lines("irof", numbers)[1]
    assert line.endswith("], p 0.031, 6 images" if n == 6 else f"], {n} images, too few for a test")
    assert [row["p"] for row in pair_rows("irof", numbers)] == [2 / 2**n]


def test_a_clear_difference_stays_so_among_hundreds_of_pairs() -> None:
    rng = np.random.default_rng(0)
    numbers = {f"m{i}": rng.normal(i, 0.5, 40) for i in range(24)}
    rows = pair_rows("irof", numbers)
    assert len(rows) == 276
    assert max(row["p_holm"] for row in rows) < 0.05
    _, first, *_ = pair_lines("irof", numbers)
    assert first.endswith("p ≤ 0.0025, 40 images"), "no draw was as far, so p may be smaller"
    few = pair_lines("irof", {"a": np.arange(1.0, 13), "b": np.zeros(12)})[1]
    assert few.endswith("p 0.00049, 12 images"), "all choices of signs were tried"


def test_a_metric_under_another_name_keeps_its_direction() -> None:
    deletion = METRICS["deletion"]
    metrics = [deletion, replace(deletion, name="deletion-2"), replace(deletion, name="undirected", better="")]
    found = compare(tiny(), images(4), ["grad-cam", "layer-cam"], "relu1", metrics=metrics)
    assert found.measured["grad-cam"]["deletion-2"].better == "lower"
    rows = found.agreement_rows()
    assert [row["metric"] for row in rows] == ["deletion", "deletion-2"]
    assert [row["deletion-2"] for row in rows] == pytest.approx([1, 1])
    with pytest.raises(OptionError, match="number of methods: 0, of metrics: 0; expected at least three"):
        agreement_rows({"undirected": found.numbers()["undirected"]}, {"undirected": ""})


def test_the_curve_of_the_random_baseline_is_that_of_its_number() -> None:
    found = compare(tiny(), images(4), ["grad-cam"], "relu1", metrics="deletion", seed=3).baselines["random"][
        "deletion"
    ]
    curve = found.details["curve"]
    areas = torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))
    torch.testing.assert_close(areas, found.values)
    assert (found.details["draws"][:, 0] - areas).abs().min() > 1e-4, "the first draw is another number"


def test_the_random_baseline_is_the_mean_of_several_draws() -> None:
    model, batch = tiny(), images(4)
    for targets in (None, [[0, 1]] * 4):
        found = compare(model, batch, ["grad-cam"], "relu1", targets=targets, metrics="entropy", seed=3)
        own = found.baselines["random"]["entropy"]
        maps = [BASELINES["random"](batch, 3 + draw) for draw in range(RANDOM_DRAWS)]
        each = torch.stack([METRICS["entropy"](MetricInput(one, batch)).values for one in maps], 1)
        expected = each if targets is None else each.repeat_interleave(2, 0)
        torch.testing.assert_close(own.details["draws"], expected)
        torch.testing.assert_close(own.values, expected.mean(1))
        assert each.std(1).min() > 0, "draws differ"
        assert "draws" not in found.baselines["edges"]["entropy"].details


def test_a_draw_that_does_not_count_is_left_out() -> None:
    ok, nan = int(Status.OK), int(Status.NAN)
    draws = [
        MetricResult(values, status, {}, {"curve": curve, "ties": ties, "odd": torch.zeros(3, size)})
        for values, status, curve, ties, size in (
            (
                torch.tensor([1.0, 2.0, 7.0]),
                torch.tensor([ok, ok, nan]),
                torch.tensor([[1.0, 2.0]] * 3),
                torch.tensor([1, 1, 1]),
                1,
            ),
            (
                torch.tensor([3.0, 9.0, 8.0]),
                torch.tensor([ok, nan, nan]),
                torch.tensor([[3.0, 4.0]] * 3),
                torch.tensor([2, 2, 2]),
                2,
            ),
        )
    ]
    found = mean_of_draws(draws)
    assert found.values.tolist() == [2.0, 2.0, 7.0]
    assert found.details["curve"].tolist() == [[2.0, 3.0], [1.0, 2.0], [1.0, 2.0]]
    assert found.details["ties"].tolist() == [1.5, 1.0, 1.0]
    assert set(found.details) == {"curve", "ties", "draws"}, "a detail of several shapes has no mean"
    assert found.status.tolist() == [ok, ok, nan]
    assert mean_of_draws(draws[:1]) is draws[0]

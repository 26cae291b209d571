"""Numbers that a reader can check by hand, and the edges of each definition."""

from __future__ import annotations

import math
from inspect import unwrap

import pytest
import torch
from metric_cases import IMAGE, MAP, RIGHT, value
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, ShapeError
from gradcam_kit.metrics import (
    BASELINES,
    METRICS,
    MetricInput,
    Status,
    adcc,
    adcc_complexity,
    adcc_of_means,
    average_drop,
    average_gain,
    average_increase,
    checks,
    coherency,
    deletion,
    entropy,
    infidelity,
    insertion,
    mass_accuracy,
    road_combined,
    road_curve,
    road_lerf,
    road_morf,
    sensitivity_max,
    sparseness,
)


def mean_over_eight(rows: Tensor, index: Tensor) -> Tensor:
    """0.5 for the image of fours."""
    return rows.flatten(1).mean(1) / 8


def test_masked_scores() -> None:
    # The map keeps 1.75 of 4 positions: Y = 0.5, O = 0.21875.
    assert value(average_drop(MAP, IMAGE, mean_over_eight)) == 56.25
    assert value(average_increase(MAP, IMAGE, mean_over_eight)) == 0
    assert value(average_gain(MAP, IMAGE, mean_over_eight)) == 0

    def less_is_more(rows: Tensor, index: Tensor) -> Tensor:
        return 1 - mean_over_eight(rows, index)

    # Y = 0.5, O = 0.78125.
    assert value(average_drop(MAP, IMAGE, less_is_more)) == 0
    assert value(average_increase(MAP, IMAGE, less_is_more)) == 100
    assert value(average_gain(MAP, IMAGE, less_is_more)) == 56.25


def test_the_drop_is_relative() -> None:
    # An absolute drop would be ten times smaller for the second one.
    small = average_drop(MAP, IMAGE, lambda rows, index: mean_over_eight(rows, index) / 10)
    assert value(small) == 56.25


def test_a_score_of_one_cannot_gain_and_one_of_zero_cannot_drop() -> None:
    assert value(average_gain(MAP, IMAGE, lambda rows, index: torch.ones(len(rows)))) == 0
    assert value(average_drop(MAP, IMAGE, lambda rows, index: torch.zeros(len(rows)))) == 0


def test_adcc_and_its_parts() -> None:
    def explain(images: Tensor) -> Tensor:
        return 1 - MAP  # the opposite: correlation -1

    assert value(coherency(MAP, IMAGE, lambda images: MAP / 2)) == 1
    assert value(coherency(MAP, IMAGE, explain)) == 0
    assert value(adcc_complexity(MAP)) == 1.75 / 4
    assert value(adcc_complexity(0.5 + MAP / 2)) == 1.75 / 4  # of the min-max map
    # A component of 0 gives 0, not an error.
    assert value(adcc(MAP, IMAGE, mean_over_eight, explain)) == 0
    expected = 3 / (1 / 1 + 1 / (1 - 0.4375) + 1 / (1 - 0.5625))
    assert value(adcc(MAP, IMAGE, mean_over_eight, lambda images: MAP)) == expected
    of_means = adcc_of_means(torch.tensor(1.0), torch.tensor(0.4375), torch.tensor(0.5625))
    assert float(of_means) == pytest.approx(expected)


def test_coherency_where_the_second_map_is_constant() -> None:
    found = coherency(MAP, IMAGE, lambda images: torch.ones_like(MAP))
    assert found.values.tolist() == [0]
    assert found.status.tolist() == [Status.DEGENERATE_MAP]


def test_the_map_of_ones_games_the_drop_and_says_so() -> None:
    ones = BASELINES["ones"](IMAGE, 0, None)
    drop = average_drop(ones, IMAGE, mean_over_eight)
    assert drop.values.tolist() == [0]
    assert drop.status.tolist() == [Status.DEGENERATE_MAP]
    assert drop.mean.isnan()
    chance = mass_accuracy(ones, RIGHT)
    assert chance.values.tolist() == chance.details["chance"].tolist() == [0.5]
    assert chance.status.tolist() == [Status.DEGENERATE_MAP]


def test_deletion_by_hand() -> None:
    # Scores 4/8, 3/8, 2/8, 1/8, 0 at fractions 0, 1/4, ..., 1.
    found = deletion(MAP, IMAGE, mean_over_eight, steps=4)
    assert value(found) == 0.25
    assert found.details["curve"].tolist() == [[0.5, 0.375, 0.25, 0.125, 0.0]]
    # Of three steps the last is shorter: 2 positions, then 2. With 3 positions per step: 3, then 1.
    assert deletion(MAP, IMAGE, mean_over_eight, steps=3).settings["positions_per_step"] == 2
    short = torch.tensor([[0.9, 0.5, 0.4, 0.1, 0.0]])
    signal = torch.tensor([[[4.0, 0.0, 0.0, 0.0, 4.0]]])
    found = deletion(short, signal, lambda rows, index: rows.sum((1, 2)) / 8, steps=2)
    # Fractions 0, 3/5, 1 and scores 1, 1/2, 0.
    assert value(found) == 0.6 * 0.75 + 0.4 * 0.25
    assert found.settings["steps"] == 2


def test_deletion_to_another_baseline_starts_and_ends_right() -> None:
    found = deletion(MAP, IMAGE, mean_over_eight, steps=2, baseline=2.0)
    assert found.details["curve"].tolist() == [[0.5, 0.375, 0.25]]
    assert found.settings["baseline"] == "value 2"


def test_insertion_goes_from_the_blurred_image_to_the_image() -> None:
    image = torch.zeros(1, 1, 1, 21)
    image[..., 10] = 1
    heatmap = image[:, 0] * 0.9
    found = insertion(heatmap, image, lambda rows, index: rows[:, 0, 0, 10], steps=21, kernel=3, sigma=1.0)
    middle = 1 / (1 + 2 * math.exp(-0.5))
    assert found.details["curve"][0, :2].tolist() == pytest.approx([middle, 1])
    assert value(found) == 1 - (1 - middle) / 2 / 21


def test_ties_are_broken_by_place_and_counted() -> None:
    tied = torch.tensor([[[1.0, 0.5], [0.5, 0.5]]])
    image = torch.tensor([[[[8.0, 4.0], [2.0, 1.0]]]])
    found = deletion(tied, image, lambda rows, index: rows.sum((1, 2, 3)), steps=4)
    assert found.details["curve"].tolist() == [[15.0, 7.0, 3.0, 1.0, 0.0]]
    assert found.details["ties"].tolist() == [2]
    assert deletion(MAP, IMAGE, mean_over_eight, steps=4).details["ties"].tolist() == [0]


def test_entropy_and_sparseness() -> None:
    one = torch.zeros(1, 2, 4)
    one[0, 1, 2] = 0.3
    assert value(entropy(one)) == 0
    assert value(sparseness(one)) == 7 / 8
    assert value(entropy(MAP)) == -sum(v / 1.75 * math.log(v / 1.75) for v in (0.25, 0.5, 1.0))
    assert value(entropy(-MAP)) == float(entropy(MAP).values)  # the absolute value comes first
    even = torch.full((1, 2, 4), 0.5)
    assert float(entropy(even).values) == pytest.approx(math.log(8))
    assert float(sparseness(even).values) == pytest.approx(0)
    assert entropy(torch.zeros(1, 2, 2)).values.isnan()


def test_sensitivity_of_a_map_that_is_the_image() -> None:
    def explain(images: Tensor) -> Tensor:
        return images[:, 0] / 8

    found = sensitivity_max(explain(IMAGE), IMAGE + 0, explain, radius=0.1, samples=20)
    assert 0 < float(found.values) <= 0.1 / 4
    still = sensitivity_max(MAP, IMAGE, lambda images: MAP, radius=0.5)
    assert value(still) == 0


def test_infidelity_of_a_linear_score_is_zero() -> None:
    weights = torch.tensor([[1.0, 2.0], [0.0, 4.0]])

    def linear(rows: Tensor, index: Tensor) -> Tensor:
        return (rows[:, 0] * weights).sum((1, 2))

    truth = weights[None] / 4
    for perturbation in ("noise", "patches"):
        exact = infidelity(truth, IMAGE, linear, perturbation=perturbation, patch=1)
        assert float(exact.values) == pytest.approx(0, abs=1e-9)
        assert float(exact.details["scale"]) == pytest.approx(4, rel=1e-4)
        assert float(infidelity(1 - truth, IMAGE, linear, perturbation=perturbation, patch=1).values) > 0.01
        unscaled = infidelity(truth, IMAGE, linear, perturbation=perturbation, patch=1, scaled=False)
        assert float(unscaled.values) > 0.01
    blind = infidelity(torch.zeros_like(truth), IMAGE, linear)
    assert blind.details["scale"].tolist() == [0]


def test_percentages_of_road() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    heatmap = torch.arange(16.0).reshape(1, 4, 4).flip(1) / 16

    def changed(rows: Tensor, index: Tensor) -> Tensor:
        return (rows != image[index]).flatten(1).sum(1).float()

    curve = road_curve(heatmap, image, changed, percentages=(7.0, 25.0, 50.0), noise=0.01)
    assert curve.tolist() == [[2, 4, 8]]  # the ceiling: 1.12 of 16 are 2
    for percentages in ((100.0,), (0.0,), (), (94.0,)):
        with pytest.raises(OptionError, match="percentages"):
            road_curve(heatmap, image, changed, percentages=percentages)
    with pytest.raises(OptionError, match="noise"):
        road_curve(heatmap, image, changed, noise=-1.0)
    with pytest.raises(ShapeError, match="ROAD needs images"):
        road_curve(heatmap[:, 0], image[:, :, 0], changed)


def test_ties_of_road_are_those_at_the_cuts_of_each_order() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    heatmap = torch.linspace(1, 0.1, 16)
    heatmap[11:14] = heatmap[11]  # the last cut of four positions from the end goes through them
    options = {"percentages": (25.0,), "noise": 0.0}
    for metric, ties in ((road_morf, 0), (road_lerf, 1), (road_combined, 1)):
        found = metric(heatmap.reshape(1, 4, 4), image, mean_over_eight, **options)
        assert found.details["ties"].tolist() == [ties]


def test_both_orders_of_road_share_their_passes() -> None:
    image, calls = torch.arange(16.0).reshape(1, 1, 4, 4), []

    def rescore(rows: Tensor, index: Tensor) -> Tensor:
        calls.append(len(rows))
        return mean_over_eight(rows, index)

    heatmap = torch.linspace(1, 0, 16).reshape(1, 4, 4)
    found = road_combined(heatmap, image, rescore, percentages=(25.0, 50.0))
    assert calls == [4]
    for order in (True, False):
        curve = road_curve(heatmap, image, mean_over_eight, percentages=(25.0, 50.0), most_relevant_first=order)
        torch.testing.assert_close(found.details["morf" if order else "lerf"], curve)


def test_sensitivity_counts_predictions_that_changed() -> None:
    images = torch.cat([IMAGE, IMAGE + 100])

    def predicts(rows: Tensor, index: Tensor) -> Tensor:
        return (rows.flatten(1).mean(1) > 4).float()  # the first image lies on the border

    def explain(changed: Tensor) -> Tensor:
        return MAP.expand(2, -1, -1)

    found = sensitivity_max(explain(images), images, explain, predicts=predicts, radius=0.5, samples=12)
    changed = found.details["predictions_changed"].tolist()
    assert 0 < changed[0] < 12
    assert changed[1] == 0
    assert "predictions_changed" not in sensitivity_max(explain(images), images, explain).details


def test_what_metrics_share_is_computed_once() -> None:
    calls = []

    def rescore(rows: Tensor, index: Tensor) -> Tensor:
        calls.append("score")
        return mean_over_eight(rows, index)

    def explain(images: Tensor) -> Tensor:
        calls.append("explain")
        return MAP

    case = MetricInput(MAP, IMAGE, rescore, explain=explain)
    for name in ("average-drop", "average-increase", "average-gain", "coherency", "adcc"):
        shared = METRICS[name](case)
        alone = METRICS[name](MetricInput(MAP, IMAGE, mean_over_eight, explain=lambda images: MAP))
        torch.testing.assert_close(shared.values, alone.values)
    assert calls == ["score", "score", "explain"]


def test_a_number_is_described_with_all_that_it_depends_on() -> None:
    found = METRICS["road-combined"](
        MetricInput(MAP, IMAGE, mean_over_eight), percentages=(25.0, 50.0), noise=0.0, batch_size=4
    )
    said = METRICS["road-combined"].describe(found.settings)
    assert said.startswith(
        "road-combined: higher is better, score unknown, classes unknown, percentages 25 50, noise 0"
    )


@pytest.mark.parametrize(("name", "check"), [("heatmaps", checks.check_heatmaps), ("masks", checks.check_masks)])
def test_arrays_are_no_tensors(name, check):
    with pytest.raises(InputError, match=rf"{name} is a ndarray; expected a tensor, such as torch.as_tensor"):
        unwrap(check)(torch.rand(2, 4, 4).numpy(), torch.rand(2, 3, 4, 4))  # unwrapped: as it is outside of the tests

"""What holds for every name in `METRICS`, and for every baseline."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import pytest
import torch
from metric_cases import SIZE, masks, measure, names_that_need, standard_case, with_maps
from models import images

from gradcam_kit.errors import InputError, OptionError, ShapeError
from gradcam_kit.metrics import BASELINES, METRICS, MetricInput, Status

DRAWN = ("sensitivity-n", "faithfulness-correlation", "region-perturbation", "local-lipschitz")
ALL = pytest.mark.parametrize("name", METRICS)


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-5, equal_nan=True)


@ALL
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_a_batch_is_its_images_one_by_one_in_any_order(name, named):
    metric = METRICS[name]
    with standard_case(named=named) as case:
        whole = measure(metric, case)
    assert whole.values.shape == whole.status.shape == (3,)
    assert whole.values.dtype == torch.float32
    for i in range(3):
        with standard_case(pick=torch.tensor([i]), named=named) as case:
            close(measure(metric, case).values, whole.values[i : i + 1])
    order = torch.tensor([2, 0, 1])
    with standard_case(pick=order, named=named) as case:
        turned = measure(metric, case)
    close(turned.values, whole.values[order])
    for key, detail in whole.details.items():
        close(turned.details[key].double(), detail[order].double())


@pytest.mark.parametrize("name", names_that_need("rescore") + names_that_need("predicts"))
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_matter(name, batch_size):
    with standard_case() as case:
        expected = measure(METRICS[name], case)
    has_option = "batch_size" in signature(METRICS[name].function).parameters
    options = {"batch_size": batch_size} if has_option else {}
    with standard_case(batch_size=batch_size) as case:
        close(measure(METRICS[name], case, **options).values, expected.values)


@pytest.mark.parametrize(
    "name", ["deletion", "insertion", "irof", "road-morf", "road-combined", "infidelity", "sensitivity-n"]
)
def test_no_more_rows_exist_than_asked_for(name):
    seen = []
    with standard_case() as case:
        plain = case.rescore

        def counted(rows, index):
            seen.append(len(rows))
            return plain(rows, index)

        measure(METRICS[name], replace(case, rescore=counted, predicts=counted), batch_size=4)
    assert max(seen) == 4
    assert sum(seen) >= 3 * 6


@ALL
def test_nothing_is_drawn_from_the_global_generator(name):
    with standard_case() as case:
        before = torch.get_rng_state()
        first = measure(METRICS[name], case)
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(3)
        second = measure(METRICS[name], case)
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["road-combined", "sensitivity-max", "infidelity", *DRAWN])
def test_another_seed_and_another_identity_draw_anew(name):
    with standard_case() as case:
        first = measure(METRICS[name], case).values
        assert (measure(METRICS[name], replace(case, seed=6)).values != first).all()
        moved = measure(METRICS[name], replace(case, identities=case.identities + 1)).values
    assert (moved != first).all()


@ALL
def test_degenerate_maps_are_flagged_and_leave_the_others_alone(name):
    with standard_case() as case:
        expected = measure(METRICS[name], case).values[2]
        for bad in (0.0, 1.0, 0.25, torch.nan, torch.inf):
            heatmaps = case.heatmaps.clone()
            heatmaps[0] = bad
            heatmaps[1, 3, 4] = torch.nan
            found = measure(METRICS[name], with_maps(case, heatmaps))
            assert found.status[:2].tolist() == [Status.DEGENERATE_MAP] * 2, bad
            assert found.values[1].isnan()
            assert found.ok.tolist() == [False, False, True]
            assert found.count == 1
            close(found.values[2], expected)
            close(found.mean, expected)


@pytest.mark.parametrize("name", names_that_need("masks"))
def test_empty_masks_are_flagged(name):
    with standard_case() as case:
        expected = measure(METRICS[name], case)
        none = masks()
        none[1] = False
        found = measure(METRICS[name], replace(case, masks=none))
    assert found.status.tolist() == [Status.OK, Status.EMPTY_GT, Status.OK]
    assert found.values[1].isnan()
    close(found.values[[0, 2]], expected.values[[0, 2]])
    every = measure(METRICS[name], replace(case, masks=torch.ones_like(none)))
    assert every.ok.all()


@pytest.mark.parametrize("name", names_that_need("rescore"))
def test_scores_that_are_no_numbers_are_flagged(name):
    with standard_case() as case:

        def rescore(rows, index):
            return case.rescore(rows, index).masked_fill(index == 1, torch.nan)

        found = measure(METRICS[name], replace(case, rescore=rescore))
    assert found.status.tolist() == [Status.OK, Status.NAN, Status.OK]
    assert found.values[1].isnan()


@ALL
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(name, mode):
    with standard_case() as case:
        expected = measure(METRICS[name], case).values
        with mode():
            found = measure(METRICS[name], case).values
    close(found, expected)
    assert not found.requires_grad


@ALL
def test_nothing_given_is_changed(name):
    with standard_case() as case:
        before = [tensor.clone() for tensor in (case.heatmaps, case.images, case.masks)]
        measure(METRICS[name], case)
        for tensor, old in zip((case.heatmaps, case.images, case.masks), before, strict=True):
            assert torch.equal(tensor, old)


@ALL
def test_no_images(name):
    with standard_case() as case:
        none = {"heatmaps": case.heatmaps[:0], "images": case.images[:0], "masks": case.masks[:0]}
        scores = dict.fromkeys(("rescore", "predicts"), lambda rows, index: rows.new_zeros(len(rows)))
        again = {"explain": lambda x: x[:, 0], "represent": lambda x: x}
        found = measure(METRICS[name], MetricInput(**none, **scores, **again))
    assert found.values.shape == (0,)
    assert found.count == 0
    assert found.mean.isnan()


@ALL
def test_what_a_metric_needs_is_said(name):
    metric = METRICS[name]
    with standard_case() as case:
        bare = MetricInput(case.heatmaps, case.images)
    assert metric.better in ("higher", "lower")
    for field in metric.needs:
        with pytest.raises(InputError, match=rf"'{name}' needs .*{field}"):
            metric(bare)
    assert metric.needs or metric(bare).ok.all()


@ALL
def test_heatmaps_in_half_precision(name):
    with standard_case() as case:
        expected = measure(METRICS[name], case).values
        found = measure(METRICS[name], with_maps(case, case.heatmaps.half()))
    assert found.values.dtype == torch.float32
    assert found.ok.all()
    assert (found.values - expected).abs().max() < 0.1 * (1 + expected.abs().max())


def test_sizes_that_do_not_fit():
    heatmaps, x = torch.rand(3, *SIZE), images(size=SIZE)
    with pytest.raises(ShapeError, match=r"\(3, 13, 14\).*\(2, 3, 13, 14\)"):
        MetricInput(heatmaps, x[:2])
    with pytest.raises(ShapeError, match=r"\(3, 7, 7\).*need \(3, 13, 14\)"):
        MetricInput(torch.rand(3, 7, 7), x)
    with pytest.raises(ShapeError, match="fold the axis of several targets"):
        MetricInput(torch.rand(3, 2, *SIZE), x)
    with pytest.raises(ShapeError, match=r"masks have shape \(3, 26, 28\).*Resize the masks yourself"):
        MetricInput(heatmaps, x, masks=torch.ones(3, 26, 28, dtype=torch.bool))
    with pytest.raises(ShapeError, match="identities"):
        MetricInput(heatmaps, x, identities=torch.arange(2))
    for wrong, said in ((torch.rand(3), "float32"), (torch.ones(3) > 0, "bool")):
        with pytest.raises(InputError, match=f"identities.*{said}"):
            MetricInput(heatmaps, x, identities=wrong)
    with pytest.raises(ShapeError, match=r"scores of shape \(3, 2\) for 3 rows"):
        METRICS["average-drop"](MetricInput(heatmaps, x, rescore=lambda rows, index: torch.zeros(len(rows), 2)))


@pytest.mark.parametrize("bad", [-0.01, 1.01, 255.0])
def test_heatmaps_outside_of_their_range(bad):
    heatmaps = torch.rand(3, *SIZE)
    heatmaps[1, 2, 3] = bad
    with pytest.raises(OptionError, match="range from"):
        MetricInput(heatmaps, images(size=SIZE))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name):
    x, identities = images(size=SIZE), torch.tensor([4, 9, 2])
    whole = BASELINES[name](x, 3, identities)
    assert whole.shape == (3, *SIZE)
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() <= whole.max() <= 1
    turned = torch.tensor([2, 0])
    torch.testing.assert_close(BASELINES[name](x[turned], 3, identities[turned]), whole[turned])
    torch.testing.assert_close(BASELINES[name](x[turned], 3), BASELINES[name](x, 3)[turned])
    for dims in ((9,), (4, 5, 6)):
        assert BASELINES[name](images(size=dims), 0, None).shape == (3, *dims)

"""Metrics over data sets: batches in any cut, several processes, and the numbers that only a data set has."""

from __future__ import annotations

import pickle
from pathlib import Path

import forked
import pytest
import torch
from metric_cases import FEW, SIZE, masks, measure, standard_case, with_maps
from torchmetrics import MetricCollection

from gradcam_kit.errors import InputError, UnknownNameError
from gradcam_kit.metrics import (
    METRICS,
    Metric,
    MetricResult,
    average_precision,
    box_overlaps,
    grid_pointing,
    pixel_histograms,
)
from gradcam_kit.metrics.accumulation import MaxBoxAccuracy, MeanOverImages, PixelAveragePrecision, PointingGame
from gradcam_kit.metrics.boxes import bounding_boxes


def random_maps(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", METRICS)
def test_the_mean_over_batches_is_that_of_all_images(name: str) -> None:
    parts = MeanOverImages(name, **FEW.get(name, {}))
    for pick in ([0, 2], [1]):
        with standard_case(pick=torch.tensor(pick)) as case:
            parts.update(case)
    with standard_case() as case:
        whole = measure(METRICS[name], case)
    found = parts.compute()
    torch.testing.assert_close(found["mean"], whole.mean, rtol=1e-4, atol=1e-5)
    assert found["count"] == 3
    assert found["degenerate_map"] == 0
    assert parts.higher_is_better == (METRICS[name].better == "higher")


def test_flagged_images_are_counted_and_not_averaged() -> None:
    with standard_case() as case:
        heatmaps = case.heatmaps.clone()
        heatmaps[0] = 0.5
        empty = masks()
        empty[1] = False
        object.__setattr__(case, "masks", empty)
        metric = MeanOverImages("mass-accuracy")
        metric.update(with_maps(case, heatmaps))
        expected = METRICS["mass-accuracy"](case).values[2]
    found = metric.compute()
    torch.testing.assert_close(found["mean"], expected)
    assert {key: int(found[key]) for key in ("count", "degenerate_map", "empty_gt", "nan", "error")} == {
        "count": 1, "degenerate_map": 1, "empty_gt": 1, "nan": 0, "error": 0,
    }  # fmt: skip
    metric.reset()
    metric.update(METRICS["mass-accuracy"](with_maps(case, torch.zeros_like(heatmaps))))
    assert metric.compute()["mean"].isnan()


def test_any_function_that_measures_can_be_accumulated() -> None:
    maps, cells = random_maps(4)[:, :12], torch.tensor([0, 1, 2, 3])
    maps[3] = 0.5
    metric = MeanOverImages(Metric("grid-pointing", grid_pointing, "higher"))
    for part in (slice(0, 1), slice(1, 4)):
        metric.update(grid_pointing(maps[part], cells[part]))
    found = metric.compute()
    torch.testing.assert_close(found["mean"], grid_pointing(maps, cells).mean)
    assert (int(found["count"]), int(found["degenerate_map"]), metric.higher_is_better) == (3, 1, True)


def test_different_settings_do_not_mix() -> None:
    metric = MeanOverImages("deletion")
    with standard_case() as case:
        metric.update(METRICS["deletion"](case, steps=3))
        with pytest.raises(InputError, match=r"positions_per_step, steps"):
            metric.update(METRICS["deletion"](case, steps=4))
    with pytest.raises(UnknownNameError, match="did you mean 'deletion'"):
        MeanOverImages("deletoin")


def test_collections_and_pickling() -> None:
    metrics = MetricCollection({name: MeanOverImages(name) for name in ("entropy", "mass-accuracy")})
    with standard_case() as case:
        metrics.update(case)
        expected = METRICS["entropy"](case).mean
    found = pickle.loads(pickle.dumps(metrics)).compute()
    torch.testing.assert_close(found["entropy_mean"], expected)


def test_the_pointing_game_is_the_mean_of_classes() -> None:
    heatmaps, objects = torch.zeros(4, *SIZE), torch.zeros(4, *SIZE, dtype=torch.bool)
    heatmaps[:, 3, 3] = 1
    objects[0, 3, 3] = objects[1, 3, 3] = objects[2, 9, 9] = True  # hit, hit, miss, empty
    metric = PointingGame(4)
    for part in (slice(0, 2), slice(2, 4)):
        metric.update(heatmaps[part], objects[part], torch.tensor([0, 2, 2, 1])[part])
    found = metric.compute()
    assert float(found["mean"]) == 0.75
    assert int(found["classes"]) == 2
    assert found["per_class"].nan_to_num(-1).tolist() == [1, -1, 0.5, -1]
    wide = PointingGame(4, tolerance=9.0)
    wide.update(heatmaps, objects, torch.tensor([0, 2, 2, 1]))
    assert float(wide.compute()["mean"]) == 1


def test_the_best_threshold_is_that_of_the_data_set() -> None:
    maps, thresholds = random_maps(3).sqrt(), (0.2, 0.5, 0.8)
    metric = MaxBoxAccuracy(overlaps=(0.1, 0.5), all_regions=True, thresholds=thresholds)
    for part in (slice(0, 1), slice(1, 3)):
        metric.update(maps[part], masks()[part])
    overlaps = box_overlaps(maps, bounding_boxes(masks())[:, None], thresholds, all_regions=True)
    expected = torch.stack([(overlaps >= overlap).double().mean(0) for overlap in (0.1, 0.5)])
    torch.testing.assert_close(metric.accuracies(), expected)
    found = metric.compute()
    assert float(found["mean"]) == pytest.approx(float(expected.amax(1).mean()))
    assert found["threshold"].tolist() == pytest.approx([thresholds[i] for i in expected.argmax(1)])
    constant = MaxBoxAccuracy()
    constant.update(torch.ones(3, *SIZE), masks())
    assert constant.compute()["count"] == 0
    assert constant.compute()["degenerate_map"] == 3


def test_boxes_are_found_like_masks_and_any_of_an_image_will_do() -> None:
    maps, thresholds = random_maps(3).sqrt(), (0.2, 0.5, 0.8)
    of_masks, of_boxes, of_many = (MaxBoxAccuracy(overlaps=(0.1,), thresholds=thresholds) for _ in range(3))
    boxes = bounding_boxes(masks())[:, None]
    of_masks.update(maps, masks())
    of_boxes.update(maps, boxes=boxes)
    assert torch.equal(of_boxes.accuracies(), of_masks.accuracies())
    many = torch.cat([torch.zeros(3, 1, 4), boxes.roll(1, 0), boxes], 1)
    many[2] = 0
    many[2, 0] = torch.tensor([5.0, 5.0, 5.0, 9.0])  # without area, like the other fillers
    of_many.update(maps, boxes=many)
    expected = (box_overlaps(maps, many, thresholds)[:2] >= 0.1).double().mean(0)
    assert torch.equal(of_many.accuracies()[0], expected)
    found = of_many.compute()
    assert (int(found["count"]), int(found["empty_gt"])) == (2, 1)
    for wrong, said in ({}, "neither masks nor boxes"), ({"masks": masks(), "boxes": boxes}, "both masks and boxes"):
        with pytest.raises(InputError, match=said):
            of_many.update(maps, **wrong)


def test_numbers_of_a_data_set_say_what_they_leave_out() -> None:
    maps, objects = random_maps(4), masks()[[0, 1, 2, 0]]
    maps[0] = 0.5
    maps[1, 0, 0] = torch.nan
    objects[2] = False
    pixels, pointing = PixelAveragePrecision(), PointingGame(2)
    pixels.update(maps, objects)
    pointing.update(maps, objects, torch.tensor([0, 1, 0, 1]))
    for metric, count, empty in (pixels, 2, 0), (pointing, 1, 1):
        found = metric.compute()
        assert (int(found["count"]), int(found["degenerate_map"]), int(found["empty_gt"])) == (count, 2, empty)


def test_the_pixels_of_a_data_set() -> None:
    maps = random_maps(3)
    metric = PixelAveragePrecision(bins=50)
    for i in range(3):
        metric.update(maps[i : i + 1], masks()[i : i + 1])
    expected = average_precision(pixel_histograms(maps, masks(), bins=50).sum(0))
    torch.testing.assert_close(metric.compute()["average_precision"], expected)


@pytest.mark.parametrize("kind", [MeanOverImages, PixelAveragePrecision])
def test_the_states_of_two_ranks_are_joined(kind: type) -> None:
    maps, objects = random_maps(5), torch.rand(5, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    of_other = []
    joining = {"distributed_available_fn": lambda: True, "dist_sync_fn": lambda own, group: [own, of_other.pop(0)]}
    if kind is MeanOverImages:
        alone, other = kind("mass-accuracy"), kind("mass-accuracy")
        rank = kind("mass-accuracy", torchmetrics_options=joining)
    else:
        alone, other, rank = kind(), kind(), kind(**joining)
    for metric, part in (alone, slice(5)), (rank, slice(2)), (other, slice(2, 5)):
        batch = maps[part], objects[part]
        metric.update(*batch if kind is not MeanOverImages else [METRICS["mass-accuracy"].function(*batch)])
    of_other += other.metric_state.values()
    found, expected = rank.compute(), alone.compute()
    assert not of_other
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


WORKER = """
import sys, torch
import torch.distributed as dist
from gradcam_kit.metrics.accumulation import MeanOverImages, PixelAveragePrecision
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
from gradcam_kit.metrics import MetricInput
maps = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
masks = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.3
own = slice(0, 2) if rank == 0 else slice(2, 5)
mean, pixels = MeanOverImages("mass-accuracy"), PixelAveragePrecision()
mean.update(MetricInput(maps[own], maps[own][:, None], masks=masks[own]))
pixels.update(maps[own], masks[own])
print(float(mean.compute()["mean"]), int(mean.compute()["count"]), float(pixels.compute()["average_precision"]))
dist.destroy_process_group()
"""


@pytest.mark.exhaustive
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    outputs = forked.run_two_ranks(WORKER, tmp_path, preload=["torchmetrics"])
    maps = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    objects = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.3
    mean = (maps * objects).sum((1, 2)) / maps.sum((1, 2))
    area = average_precision(pixel_histograms(maps, objects).sum(0))
    for found in outputs:
        assert [float(number) for number in found.split()] == pytest.approx(
            [float(mean.mean()), 5, float(area)], rel=1e-5
        )


def test_the_extra_is_named_when_it_is_missing() -> None:
    code = "import sys; sys.modules['torchmetrics'] = None; import gradcam_kit.metrics.accumulation"
    result = forked.run(code, check=False)
    assert 'pip install -e ".[metrics]"' in result.stderr.splitlines()[-1]


def test_after_a_reset_other_settings_may_come():
    values = torch.tensor([0.25, 0.75])
    status = torch.zeros(2, dtype=torch.long)
    mean = MeanOverImages("deletion")
    mean.update(MetricResult(values, status, {"steps": 8}, {}))
    mean.reset()
    mean.update(MetricResult(values, status, {"steps": 16}, {}))
    assert mean.compute()["mean"] == 0.5
    with pytest.raises(InputError, match="steps"):
        mean.update(MetricResult(values, status, {"steps": 8}, {}))

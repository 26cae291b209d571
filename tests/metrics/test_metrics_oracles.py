"""Every metric equals a slow transcription of its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference_metrics as ref
import reference_metrics_localization as loc
import reference_removal as removal
import torch
from metric_cases import CLASSES, FEW, SIZE, measure, represent, standard_case
from models import tiny
from reference_scores import gaussian_blur
from skimage.filters import threshold_otsu
from skimage.segmentation import slic
from torch.nn.functional import avg_pool2d

from gradcam_kit import GradCAM, metrics
from gradcam_kit.capture import ClassProbability, IsPrediction
from gradcam_kit.draws import normal, uniform
from gradcam_kit.metrics import (
    METRICS,
    MetricInput,
    box_overlaps,
    correlations,
    replacement,
    road,
    robustness,
    stability,
)

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class Sample:
    """One image of the case in float64, with the model as plain functions."""

    def __init__(self, case: MetricInput, i: int) -> None:
        self.heatmap, self.image = case.heatmaps[i].double().numpy(), case.images[i].double().numpy()
        self.mask = case.masks[i].numpy()
        self.identity, self.seed, self.target = case.identities[i : i + 1], case.seed, CLASSES[i : i + 1]
        self.model = tiny().double()

    def score(self, image: Any) -> float:
        return self._by(ClassProbability, image)

    def predicts(self, image: Any) -> float:
        return self._by(IsPrediction, image)

    def _by(self, target: type, image: Any) -> float:
        with torch.no_grad():
            return target(self.target)(self.model(torch.from_numpy(np.asarray(image))[None])).item()

    def explain(self, image: Any) -> Any:
        found = GradCAM(self.model, "relu1")(torch.from_numpy(image)[None], self.target)
        return found[0].double().numpy()

    def draws(self, shape: tuple[int, ...], stream: int, count: int) -> list[Any]:
        return [uniform(shape, self.identity, self.seed, stream + i)[0].double().numpy() for i in range(count)]

    def moved(self, stream: int, count: int, radius: float) -> list[Any]:
        return [self.image + radius * (2 * draw - 1) for draw in self.draws((3, *SIZE), stream, count)]

    def noises(self, stream: int, count: int) -> list[Any]:
        low, high = (extreme(self.image, (1, 2), keepdims=True) for extreme in (np.min, np.max))
        return [low + (high - low) * draw for draw in self.draws((3, *SIZE), stream, count)]

    def represent(self, image: Any) -> Any:
        return represent(self.model, torch.from_numpy(image)[None])[0].numpy()

    def curve(self, order: bool, score: Callable[[Any], float], percentages: Any = PERCENTAGES) -> float:
        noise = 0.01 * normal((3, *SIZE), self.identity, self.seed, road._STREAM)[0].double().numpy()
        return float(np.mean(ref.road(self.heatmap, self.image, score, noise, percentages, order)))

    def combined(self, percentages: Any = PERCENTAGES) -> float:
        return (self.curve(False, self.score, percentages) - self.curve(True, self.score, percentages)) / 2


def deletion(s: Sample) -> float:
    return ref.walk(s.heatmap, s.image, np.zeros_like(s.image), s.score, FEW["deletion"]["steps"])[0]


def insertion(s: Sample) -> float:
    blurred = gaussian_blur(s.image, 11, 5.0)
    return ref.walk(s.heatmap, blurred, s.image, s.score, FEW["insertion"]["steps"])[0]


def arcc(s: Sample) -> float:
    combined = min(max(2 * s.combined((20, 40, 60, 80)), 0), 1)
    parts = [ref.coherency(s.heatmap, s.image, s.explain), 1 - ref.adcc_complexity(s.heatmap), combined]
    return 0.0 if 0 in parts else 3 / sum(1 / part for part in parts)


def sensitivity(s: Sample) -> float:
    return ref.sensitivity_max(s.heatmap, s.moved(robustness._STREAM, 10, 0.02), s.explain)


def infidelity(s: Sample) -> float:
    """Cells of 4 x 4, which are set to 0 where a draw is below a half."""
    moves = []
    for i in range(FEW["infidelity"]["samples"]):
        cells = uniform((4, 4), s.identity, s.seed, robustness._STREAM + i)[0].numpy() < 0.5
        moves.append(s.image * np.kron(cells, np.ones((4, 4)))[: SIZE[0], : SIZE[1]])
    return ref.infidelity(s.heatmap, s.image, s.score, moves, scaled=True)


def gain(s: Sample) -> float:
    zeros, steps = np.zeros_like(s.image), FEW["srg"]["steps"]
    morf, lerf = (removal.removal_area(s.heatmap, s.image, zeros, s.score, steps, least) for least in (False, True))
    return lerf - morf


def region_perturbation(s: Sample) -> float:
    (end,), labels = s.noises(replacement._STREAM, 1), removal.grid_labels(SIZE, 4)
    return removal.region_perturbation(removal.region_curve(s.heatmap, s.image, end, labels, s.score, 9))


def irof(s: Sample) -> float:
    scaled = (s.image - s.image.min()) / (s.image.max() - s.image.min())
    labels = slic(np.moveaxis(scaled, 0, -1), n_segments=9, compactness=1000, convert2lab=True, start_label=0)
    end = np.broadcast_to(s.image.mean((1, 2), keepdims=True), s.image.shape)
    return removal.irof(removal.region_curve(s.heatmap, s.image, end, labels, s.score, labels.max() + 1))


def subsets(s: Sample, *counts: int) -> float:
    draws = s.draws(SIZE, correlations._STREAM, 7 * len(counts))
    parts = [draws[7 * i : 7 * i + 7] for i in range(len(counts))]
    zeros = np.zeros_like(s.image)
    found = (
        removal.subset_correlation(s.heatmap, s.image, zeros, s.score, *own) for own in zip(parts, counts, strict=True)
    )
    return sum(found) / len(counts)


def relative_stability(s: Sample, change: Callable[[Any], float]) -> float:
    return removal.relative_stability(s.heatmap, kept(s), s.explain, change)


def kept(s: Sample) -> list[Any]:
    """The draws that keep the prediction."""
    moved = s.moved(stability._STREAM, 3, 0.1)
    return [other for other in moved if s.predicts(other) == s.predicts(s.image)]


def box_accuracy(s: Sample) -> float:
    found = loc.regions(s.heatmap > 0.2 * s.heatmap.max())
    object_box = loc.box(list(zip(*(axis.tolist() for axis in np.nonzero(s.mask)), strict=True)))
    return float(loc.box_iou(loc.box(max(found, key=loc.contour_area)), object_box) >= 0.5)


ORACLES: dict[str, Callable[[Sample], float]] = {
    "average-drop": lambda s: ref.average_drop(s.heatmap, s.image, s.score),
    "average-increase": lambda s: ref.average_increase(s.heatmap, s.image, s.score),
    "average-gain": lambda s: ref.average_gain(s.heatmap, s.image, s.score),
    "coherency": lambda s: ref.coherency(s.heatmap, s.image, s.explain),
    "adcc-complexity": lambda s: ref.adcc_complexity(s.heatmap),
    "adcc": lambda s: ref.adcc(s.heatmap, s.image, s.score, s.explain),
    "deletion": deletion,
    "insertion": insertion,
    "road-morf": lambda s: s.curve(True, s.predicts),
    "road-lerf": lambda s: s.curve(False, s.predicts),
    "road-combined": Sample.combined,
    "arcc": arcc,
    "pointing-game": lambda s: loc.pointing_game(s.heatmap, s.mask),
    "pointing-game-15": lambda s: loc.pointing_game(s.heatmap, s.mask, 15),
    "energy-pointing-game": lambda s: loc.mass_accuracy(s.heatmap, s.mask),
    "mass-accuracy": lambda s: loc.mass_accuracy(s.heatmap, s.mask),
    "rank-accuracy": lambda s: loc.rank_accuracy(s.heatmap, s.mask),
    "top-k-intersection": lambda s: loc.share_of_top(s.heatmap, s.mask, s.mask.size // 10),
    "iou": lambda s: loc.iou(s.heatmap >= 0.5 * s.heatmap.max(), s.mask),
    "iou-otsu": lambda s: loc.iou(s.heatmap > threshold_otsu(s.heatmap), s.mask),
    "weighted-ioa": lambda s: loc.weighted_ioa(s.heatmap, s.mask, 0.5),
    "box-accuracy": box_accuracy,
    "pixel-ap": lambda s: loc.average_precision(s.heatmap, s.mask, 1000),
    "sensitivity-max": sensitivity,
    "infidelity": infidelity,
    "srg": gain,
    "region-perturbation": region_perturbation,
    "irof": irof,
    "sensitivity-n": lambda s: subsets(s, 18, 91),
    "faithfulness-correlation": lambda s: subsets(s, 18),
    "monotonicity-correlation": lambda s: removal.monotonicity(
        s.heatmap, s.image, s.score, s.noises(correlations._STREAM, 2), 6
    ),
    "local-lipschitz": lambda s: removal.local_lipschitz(
        s.heatmap, s.image, s.moved(stability._STREAM, 3, 0.1), s.explain
    ),
    "relative-input-stability": lambda s: relative_stability(s, lambda x: removal.relative_norm(s.image, x)),
    "relative-output-stability": lambda s: relative_stability(s, lambda x: abs(s.score(x) - s.score(s.image))),
    "relative-representation-stability": lambda s: relative_stability(
        s, lambda x: removal.relative_norm(s.represent(s.image), s.represent(x))
    ),
    "entropy": lambda s: ref.entropy(s.heatmap),
    "sparseness": lambda s: ref.sparseness(s.heatmap),
}


def test_every_metric_has_an_oracle() -> None:
    assert set(METRICS) == set(ORACLES)


@pytest.mark.parametrize("name", ORACLES)
def test_the_metric_is_its_definition(name: str) -> None:
    with standard_case() as case:
        found = measure(METRICS[name], case)
        expected = [ORACLES[name](Sample(case, i)) for i in range(3)]
    assert found.ok.all()
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=2e-3, atol=2e-5)


def test_the_oracles_tell_images_apart() -> None:
    """A test over values that are all alike would prove little."""
    with standard_case() as case:
        spread = {name: float(measure(metric, case).values.std()) for name, metric in METRICS.items()}
    alike = {name for name, deviation in spread.items() if deviation < 1e-6}
    assert alike <= {"average-increase", "average-gain", "box-accuracy", "road-morf", "road-lerf", "pointing-game-15"}


def test_insertion_starts_from_the_blurred_image() -> None:
    seen: list[torch.Tensor] = []
    with standard_case() as case:

        def rescore(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            seen.append(rows)
            return case.rescore(rows, index)

        metrics.insertion(case.heatmaps, case.images, rescore, steps=4, batch_size=100)
    for image, start in zip(case.images, seen[0][::5], strict=True):
        np.testing.assert_allclose(start.numpy(), gaussian_blur(image.numpy(), 11, 5.0), atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_top_k(k: int) -> None:
    with standard_case() as case:
        found = METRICS["top-k-intersection"](case, k=k)
        expected = [loc.share_of_top(s.heatmap, s.mask, k) for s in (Sample(case, i) for i in range(3))]
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("scaled", [True, False])
def test_infidelity_with_noise(scaled: bool) -> None:
    with standard_case() as case:
        found = METRICS["infidelity"](case, samples=5, perturbation="noise", std=0.3, scaled=scaled)
        for i in range(3):
            s = Sample(case, i)
            moves = [
                0.3 * normal((3, *SIZE), s.identity, s.seed, robustness._STREAM + draw)[0].double().numpy()
                for draw in range(5)
            ]
            expected = ref.infidelity(s.heatmap, s.image, s.score, moves, scaled)
            assert float(found.values[i]) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_all_regions_of_the_boxes() -> None:
    maps = torch.zeros(1, 12, 12)
    maps[0, 1:4, 1:9], maps[0, 6:10, 6:10], maps[0, 10, 10] = 0.9, 1.0, 0.5
    boxes = torch.tensor([[[1.0, 1.0, 9.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])
    thresholds = [0.3, 0.6, 0.95]
    for all_regions in (False, True):
        found = box_overlaps(maps, boxes, thresholds, all_regions=all_regions)[0]
        for place, threshold in enumerate(thresholds):
            regions = sorted(loc.regions(maps[0].numpy() > threshold), key=loc.contour_area)
            regions = regions if all_regions else regions[-1:]
            expected = max(loc.box_iou(loc.box(region), (1, 1, 9, 4)) for region in regions)
            assert float(found[place]) == pytest.approx(expected)


def test_the_largest_region_is_that_of_the_largest_contour() -> None:
    """Shapes at random, a long line beside a small square, and a square inside of a ring."""
    generator = torch.Generator().manual_seed(0)
    maps = avg_pool2d(torch.rand(12, 1, 16, 16, generator=generator), 3, 1, 1)[:, 0]
    maps[0] = 0
    maps[0, 1, 1:13], maps[0, 6:9, 6:9] = 1.0, 1.0
    maps[1] = 0
    maps[1, 2:14, 2:14], maps[1, 4:12, 4:12], maps[1, 6:9, 6:9] = 1.0, 0.0, 1.0
    inner = torch.tensor([[[6.0, 6.0, 9.0, 9.0]]])
    assert float(box_overlaps(maps[1:2], inner, [0.5], all_regions=True)) == 1
    differ = 0
    for one in maps:
        boxes = torch.rand(1, 1, 4, generator=generator) * 8 + torch.tensor([0.0, 0, 8, 8])
        for threshold in (0.5, 0.7, 0.75):
            regions = loc.regions(one.numpy() > threshold * float(one.max()))
            areas = sorted((loc.contour_area(region) for region in regions), reverse=True)
            own = [loc.box_iou(loc.box(region), boxes[0, 0].tolist()) for region in regions]
            everything = box_overlaps(one[None], boxes, [threshold], all_regions=True)
            assert float(everything) == pytest.approx(max(own), rel=1e-5)
            if len(areas) == 1 or areas[0] > areas[1]:
                largest = max(range(len(regions)), key=lambda i: loc.contour_area(regions[i]))
                assert float(box_overlaps(one[None], boxes, [threshold])) == pytest.approx(own[largest], rel=1e-5)
                differ += regions[largest] != max(regions, key=len)
    assert differ

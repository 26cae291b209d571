"""What replaces removed positions, and regions: numbers by hand, and curves against loops."""

from __future__ import annotations

from inspect import unwrap

import numpy as np
import pytest
import reference_metrics as ref
import reference_removal as removal
import torch
from metric_cases import IMAGE, MAP, SIZE, measure, standard_case, value
from reference_scores import gaussian_blur
from skimage.data import astronaut
from torch import Tensor

from gradcam_kit.draws import uniform
from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.metrics import METRICS, Status, deletion, insertion, irof, mass_accuracy, region_perturbation
from gradcam_kit.metrics import symmetric_relevance_gain as gain
from gradcam_kit.metrics.regions import grid_regions, superpixels
from gradcam_kit.metrics.replacement import _STREAM, replacement


def ends(image: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    return {
        "mean": image.mean((1, 2), keepdims=True) + np.zeros_like(image),
        "blur": gaussian_blur(image, 11, 5.0),
        "noise": low + (high - low) * noise,
    }


@pytest.mark.parametrize("baseline", ["mean", "blur", "noise"])
def test_baselines_of_deletion_and_insertion(baseline: str) -> None:
    with standard_case() as case:
        found = [measure(METRICS[name], case, baseline=baseline) for name in ("deletion", "insertion")]
        for i in range(3):
            image = case.images[i].double().numpy()
            noise = uniform((3, *SIZE), case.identities[i : i + 1], case.seed, _STREAM)[0].double().numpy()
            end = ends(image, noise)[baseline]

            def score(rows: np.ndarray, i: int = i) -> float:
                return float(case.rescore(torch.from_numpy(rows)[None].float(), torch.tensor([i])))

            heatmap = case.heatmaps[i].double().numpy()
            for own, way in zip(found, ((image, end), (end, image)), strict=True):
                assert float(own.values[i]) == pytest.approx(ref.walk(heatmap, *way, score, 9)[0], rel=1e-3)
    assert baseline in str(found[0].settings["baseline"]).lower()


def test_inpainting_is_that_of_road_until_nothing_is_left() -> None:
    with standard_case() as case:
        found = replacement(case.images, "inpaint")
        removed = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) < 0.6
        removed[1], removed[2] = True, False
        filled = found.fill(torch.arange(3), removed)
        measured = measure(METRICS["deletion"], case, baseline="inpaint")
    expected = ref.impute(case.images[0].double().numpy(), removed[0].numpy())
    np.testing.assert_allclose(filled[0].numpy(), expected, atol=5e-3)
    means = case.images[1].mean((1, 2), keepdim=True).expand(-1, *SIZE)
    torch.testing.assert_close(filled[1], means)
    assert torch.equal(filled[2], case.images[2])
    assert measured.ok.all()
    with pytest.raises(ShapeError, match="'inpaint' needs images"):
        replacement(torch.rand(1, 3, 9), "inpaint")


def test_a_word_that_is_no_baseline() -> None:
    with pytest.raises(OptionError, match="baseline is 'black'; expected a finite number, or one of mean, blur"):
        unwrap(replacement)(IMAGE, "black")


def share(rows: Tensor, index: Tensor) -> Tensor:
    """The mean over eight: 0.5 for the image of fours."""
    return rows.flatten(1).mean(1) / 8


def right(rows: Tensor, index: Tensor) -> Tensor:
    """The upper right position over four: 1 for the image of fours."""
    return rows[:, 0, 0, 1] / 4


def test_numbers_by_hand() -> None:
    # The order of the map is (1, 1), (1, 0), (0, 1), (0, 0); MoRF and LeRF of a mean are the same line.
    assert value(gain(MAP, IMAGE, share, steps=4)) == 0
    # The upper right goes third by MoRF: 1, 1, 1, 0, 0; and second by LeRF: 1, 1, 0, 0, 0: 1.5 / 4 - 2.5 / 4.
    assert value(gain(MAP, IMAGE, right, steps=4)) == -0.25
    # Cells of one position: falls 0, 0, 0, 1, 1 and 0, 1/8, 2/8, 3/8, 4/8.
    assert value(region_perturbation(MAP, IMAGE, right, patch=1, baseline=0.0)) == 0.4
    assert value(region_perturbation(MAP, IMAGE, share, patch=1, baseline=0.0)) == 0.25
    assert value(region_perturbation(MAP, IMAGE, share, patch=1, steps=1, baseline=0.0)) == 0.0625
    assert value(deletion(MAP, IMAGE, share, steps=4, baseline="mean")) == 0.5
    assert value(insertion(MAP, IMAGE, right, steps=4, baseline=0.0)) == 0.375


def test_superpixels_of_a_picture() -> None:
    picture = torch.from_numpy(astronaut()[::8, ::8].copy()).permute(2, 0, 1)[None].float() / 255
    found = superpixels(picture, 30)
    assert 8 < int(found.counts) == found.most == len(found.labels.unique()) < 45
    assert torch.equal(superpixels(picture * 3 - 1, 30).labels, found.labels), "of any units"
    maps = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    means = found.means(maps)
    for region in range(found.most):
        assert float(means[0, region]) == pytest.approx(float(maps[found.labels == region].mean()), abs=1e-6)
    of_one = torch.zeros(1, 64, 64)
    of_one[found.labels == 3] = 1.0
    of_one[found.labels == 5] = 0.5

    def first(rows: Tensor, index: Tensor) -> Tensor:
        return ((rows - picture).abs().sum(1)[found.labels == 3].sum() < 1e-3).float().expand(len(rows))

    alone = irof(of_one, picture, first, segments=30, batch_size=1)
    assert value(alone) == 1 - 0.5 / found.most
    assert int(alone.details["superpixels"]) == found.most
    with pytest.raises(ShapeError, match="superpixels need images"):
        superpixels(torch.rand(1, 3, 9), 4)
    assert superpixels(torch.full((1, 1, 9, 9), 2.0), 4).most >= 1
    assert superpixels(torch.rand(1, 2, 6, 9, 9), 8).labels.shape == (1, 6, 9, 9)


def test_cells_of_a_grid() -> None:
    for size in ((7,), (5, 7), (3, 4, 5)):
        found = grid_regions(torch.zeros(2, 1, *size), 3)
        assert np.array_equal(found.labels[1].numpy(), removal.grid_labels(size, 3))
        assert found.counts.tolist() == [found.most] * 2 == [int(found.labels.max()) + 1] * 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sensitivity-n", {"fractions": ()}, "fractions are"),
        ("sensitivity-n", {"fractions": (0.5, 1.0)}, r"fractions are \(0.5, 1.0\)"),
        ("sensitivity-n", {"samples": 1}, "samples is 1; expected at least two"),
        ("faithfulness-correlation", {"subset": 182}, "subset is 182, but the maps have only 182 positions"),
        ("monotonicity-correlation", {"steps": 1}, "steps is 1 for 182 positions, which is one group"),
        ("irof", {"compactness": 0.0}, "compactness is 0"),
        ("region-perturbation", {"patch": 0}, "patch is 0"),
        ("local-lipschitz", {"radius": 0.0}, "radius is 0"),
        ("relative-input-stability", {"floor": 0.0}, "floor is 0"),
    ],
)
def test_options_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with standard_case() as case, pytest.raises(OptionError, match=said):
        METRICS[name](case, **options)


@pytest.mark.parametrize("name", ["input", "output", "representation"])
def test_draws_that_change_the_prediction_are_left_out(name: str) -> None:
    metric = METRICS[f"relative-{name}-stability"]
    with standard_case() as case:
        for kept in (False, True):

            def predicts(rows: Tensor, index: Tensor, kept: bool = kept) -> Tensor:
                unchanged = (rows == case.images[index]).flatten(1).all(1)
                return (unchanged | torch.tensor([False, True, kept])[index]).float()

            object.__setattr__(case, "predicts", predicts)
            found = measure(metric, case)
            assert found.details["left_out"].tolist() == [3, 0, 3 * (not kept)]
            assert found.status.tolist() == [Status.NAN, Status.OK, Status.OK if kept else Status.NAN]


def test_a_map_without_anything_positive_is_degenerate() -> None:
    maps = -torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[1, 0, 0] = 1
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, 0] = True
    found = mass_accuracy(maps, masks)
    assert found.status.tolist() == [int(Status.DEGENERATE_MAP), int(Status.OK)]
    assert found.values[1] == 1

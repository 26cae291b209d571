"""Metrics of parameter randomization, against other libraries' functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import images, tiny
from scipy.stats import spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor
from traces import unchanged

from gradcam_kit import EigenCAM, GradCAM
from gradcam_kit.capture.model.randomization import randomizing
from gradcam_kit.errors import OptionError
from gradcam_kit.metrics import Status
from gradcam_kit.metrics.randomization import (
    class_sensitivity,
    hog_correlation,
    method_agreement,
    parameter_randomization,
    spearman,
)


def test_histograms_of_gradients_are_undefined_for_constant_maps_and_signals() -> None:
    maps = images(2, 1, (48, 48))[:, 0]
    flat = maps.clone()
    flat[1] = 4.0
    assert torch.isnan(hog_correlation(maps, flat)).tolist() == [False, True]
    assert float(hog_correlation(maps, maps)[0]) == pytest.approx(1)
    assert float(hog_correlation(maps, 3 * maps + 2)[0]) == pytest.approx(1)
    assert float(hog_correlation(maps, maps.flip(0))[0]) < 0.5
    assert torch.isnan(hog_correlation(maps[:, 0], maps[:, 0])).all()


def test_curve_of_a_cam_and_of_a_method_that_sees_nothing_but_the_images() -> None:
    model, batch = tiny(), images(2)
    cam = GradCAM(model, "relu2")

    def explain(rows: Tensor) -> Tensor:
        return cam.explain(rows, [1, 2]).saliency["relu2"]

    with unchanged(model, batch):
        curve = parameter_randomization(model, explain, batch)
        alone = parameter_randomization(model, explain, batch, mode="independent", layers=["stage1", "fc"])
    assert curve.layers == ("fc", "stage2", "stage1")
    assert alone.layers == ("fc", "stage1")
    assert set(curve.similarity) == {"spearman", "spearman of absolute values", "ssim", "pearson of hog"}
    for name, values in curve.similarity.items():
        assert values.shape == (3, 2)
        assert torch.equal(values[0], alone.similarity[name][0])  # the first step of both
        assert torch.allclose(curve.mean()[name], values.mean(1))
    assert (curve.similarity["spearman"] < 0.95).all()
    assert curve.status.tolist() == [[Status.OK] * 2] * 3
    blind = parameter_randomization(model, lambda rows: rows.mean(1), batch)
    assert torch.allclose(blind.similarity["spearman"], torch.ones(3, 2).double())


def test_maps_that_become_constant_have_no_similarity_and_say_so() -> None:
    model, batch = tiny(), images(2)
    seen = []

    def explain(rows: Tensor) -> Tensor:
        seen.append(rows)
        maps = rows.mean(1)
        if len(seen) == 3:  # after the second step
            maps[1] = 0.5
        return maps

    curve = parameter_randomization(model, explain, batch)
    assert curve.status.tolist() == [[Status.OK, Status.OK], [Status.OK, Status.DEGENERATE_MAP], [Status.OK, Status.OK]]
    for values in curve.similarity.values():
        assert torch.equal(values.isnan(), curve.status != int(Status.OK))


def similar(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """The similarities of two signed maps, by the functions of other libraries alone."""
    shown = []
    for signed in (a, b):
        pixels = torch.nn.functional.interpolate(torch.from_numpy(signed)[None, None], size, mode="bilinear")[
            0, 0
        ].numpy()
        shown.append((pixels - pixels.min()) / (pixels.max() - pixels.min()))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, everywhere = structural_similarity(*shown, full=True, **window)
    cells = {"pixels_per_cell": (size[0] // 3, size[0] // 3)}
    return {
        "spearman": spearmanr(a.ravel(), b.ravel()).statistic,
        "spearman of absolute values": spearmanr(np.abs(a).ravel(), np.abs(b).ravel()).statistic,
        "ssim": everywhere[5:-5, 5:-5].mean(),  # of windows that lie inside
        "pearson of hog": np.corrcoef(*(hog(pixels, **cells) for pixels in shown))[0, 1],
    }


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_the_curve_is_its_definition(mode: str) -> None:
    """Against the maps that `randomizing` gives, compared pair by pair."""
    model, batch = tiny(), images(3, size=(20, 20))
    cam = GradCAM(model, "relu1")

    def explain(rows: Tensor) -> Tensor:
        return cam.explain(rows, [1, 2, 0]).saliency["relu1"].double()

    found = parameter_randomization(model, explain, batch, mode=mode, seed=4)
    with randomizing(model, batch, seed=4) as randomizer:
        original = explain(batch).numpy()
        assert (original < 0).any(), "the sign has to matter"
        assert (original > 0).any()
        steps = randomizer.cascading() if mode == "cascading" else randomizer.independent()
        for place, _ in enumerate(steps):
            for i, (a, b) in enumerate(zip(original, explain(batch).numpy(), strict=True)):
                for name, expected in similar(a, b, (20, 20)).items():
                    assert float(found.similarity[name][place, i]) == pytest.approx(expected, abs=2e-3), name
    assert len(found.layers) == place + 1


def test_classes_and_methods_are_compared() -> None:
    model, batch = tiny(), images(2)
    of = {name: method(model, "relu2") for name, method in {"grad-cam": GradCAM, "eigen-cam": EigenCAM}.items()}
    two = of["grad-cam"].explain(batch, [[0, 1], [0, 1]]).saliency["relu2"]
    found = class_sensitivity(two[:, 0], two[:, 1])
    assert found.ok.all()
    assert (found.values < 0.9).all()
    one = of["eigen-cam"].explain(batch, [[0, 1], [0, 1]]).saliency["relu2"]
    assert class_sensitivity(one[:, 0], one[:, 1]).values.tolist() == pytest.approx([1, 1])
    flat = torch.stack([one[0, 0], torch.ones_like(one[0, 0])])
    assert class_sensitivity(one[:, 0], flat).ok.tolist() == [True, False]
    maps = {name: cam.explain(batch, 0).saliency["relu2"] for name, cam in of.items()}
    found = method_agreement(maps)
    assert found.details["pairs"].shape == (2, 2, 2)
    torch.testing.assert_close(found.details["pairs"][:, 0, 1], spearman(*maps.values()))
    torch.testing.assert_close(found.values, spearman(*maps.values()).float())
    assert found.ok.all()


def test_agreement_is_the_mean_over_pairs_and_flagged_where_a_map_has_no_ranks() -> None:
    maps = {name: torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(i)) - 0.5 for i, name in enumerate("abc")}
    maps["b"][1], maps["c"][2, 0, 0] = 2.0, torch.nan
    found = method_agreement(maps)
    assert [Status(int(one)).name for one in found.status] == ["OK", "DEGENERATE_MAP", "DEGENERATE_MAP", "OK"]
    for i in (0, 3):
        a, b, c = (one[i].flatten().numpy() for one in maps.values())
        expected = [spearmanr(*pair).statistic for pair in ((a, b), (a, c), (b, c))]
        assert float(found.values[i]) == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert found.details["pairs"][1].isnan().tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, False],
    ]
    assert found.details["pairs"][2].isnan()[2].all()
    assert found.settings["methods"] == ("a", "b", "c")
    assert len(method_agreement({name: one[:0] for name, one in maps.items()}).values) == 0
    with pytest.raises(OptionError, match="at least two"):
        method_agreement({"a": maps["a"]})

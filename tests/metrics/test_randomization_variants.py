"""The smooth and the efficient test of randomized parameters, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import images, tiny
from scipy.stats import entropy
from torch import Tensor
from traces import unchanged

from gradcam_kit import GradCAM
from gradcam_kit.capture import randomizing
from gradcam_kit.draws import normal
from gradcam_kit.errors import InputError, OptionError
from gradcam_kit.metrics import Status, efficient_parameter_randomization, smooth_parameter_randomization
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.randomization import parameter_randomization
from gradcam_kit.metrics.randomization_variants import _STREAM, histogram_entropy


def test_entropy_of_histograms() -> None:
    # Two of four values in each of two bins: log 2; and one in each of four: log 4.
    assert float(histogram_entropy(torch.tensor([[0.0, 0.1, 0.9, 1.0]]), 2)) == pytest.approx(np.log(2))
    assert float(histogram_entropy(torch.tensor([[0.0, 0.3, 0.6, 1.0]]), 4)) == pytest.approx(np.log(4))
    maps = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0)).double()
    for one, found in zip(maps.numpy(), histogram_entropy(maps, 100), strict=True):
        assert float(found) == pytest.approx(entropy(np.histogram(one, 100)[0]), abs=1e-9)
    assert histogram_entropy(torch.full((1, 4), torch.nan), 4).isnan().all()


def test_the_rise_of_entropy_is_that_of_a_wholly_random_model() -> None:
    model, batch = tiny(), images(3, size=(20, 20))
    cam = GradCAM(model, "relu1")

    def explain(rows: Tensor) -> Tensor:
        return cam.explain(rows, [1, 2, 0]).saliency["relu1"]

    with unchanged(model, batch):
        found = efficient_parameter_randomization(model, explain, batch, seed=4)
    before = explain(batch).double().numpy()
    with randomizing(model, batch, seed=4) as randomizer:
        randomizer.randomize()
        after = explain(batch).double().numpy()
    for i in range(3):
        own, random = (entropy(np.histogram(maps[i], 100)[0]) for maps in (before, after))
        assert float(found.values[i]) == pytest.approx((random - own) / own, abs=1e-4)
    assert found.ok.all()
    assert found.settings == {"bins": 100, "seed": 4}


def test_maps_without_a_histogram_are_flagged() -> None:
    def explain(rows: Tensor) -> Tensor:
        maps = rows.mean(1)
        maps[1] = 0.5
        return maps

    found = efficient_parameter_randomization(tiny(), explain, images(2))
    assert found.status.tolist() == [Status.OK, Status.DEGENERATE_MAP]
    assert found.values[0] == 0, "a method that sees the images alone has no rise"


def test_smooth_maps_are_means_over_noisy_images() -> None:
    model, batch = tiny(), images(2)
    cam = GradCAM(model, "relu2")

    def explain(rows: Tensor) -> Tensor:
        return cam.explain(rows, [1, 2]).saliency["relu2"]

    own = identities_of(None, batch)
    span = torch.stack([one.max() - one.min() for one in batch])[:, None, None, None]

    def by_hand(rows: Tensor) -> Tensor:
        noisy = [rows + 0.3 * span * normal((3, 16, 16), own, 4, _STREAM + draw) for draw in range(3)]
        return torch.stack([explain(one) for one in noisy]).mean(0)

    with unchanged(model, batch):
        found = smooth_parameter_randomization(model, explain, batch, samples=3, noise=0.3, seed=4)
    expected = parameter_randomization(model, by_hand, batch, seed=4)
    for name, values in expected.similarity.items():
        torch.testing.assert_close(found.similarity[name], values, rtol=1e-3, atol=1e-4)
    assert found.settings["samples"] == 3
    assert found.settings["noise"] == "0.3 of the range"
    plain = parameter_randomization(model, explain, batch, seed=4)
    assert not torch.allclose(plain.similarity["spearman"], found.similarity["spearman"])
    alone = smooth_parameter_randomization(
        model, lambda rows: cam.explain(rows, [2]).saliency["relu2"], batch[1:], samples=3, noise=0.3, seed=4
    )
    torch.testing.assert_close(alone.similarity["spearman"][:, 0], found.similarity["spearman"][:, 1])


def test_what_is_refused() -> None:
    model, batch = tiny(), images(2)
    for variant in (smooth_parameter_randomization, efficient_parameter_randomization):
        with pytest.raises(InputError, match="explain would use the class that the random model predicts"):
            variant(model, GradCAM(model, "relu2"), batch)
    with pytest.raises(OptionError, match="bins is 1; expected at least two"):
        efficient_parameter_randomization(model, lambda rows: rows.mean(1), batch, bins=1)
    with pytest.raises(OptionError, match="noise is 0"):
        smooth_parameter_randomization(model, lambda rows: rows.mean(1), batch, noise=0.0)

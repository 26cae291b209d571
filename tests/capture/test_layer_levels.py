"""Layers that return several maps: explained one by one, and fused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from models import build, images, seeded
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import GradCAM, ReciproCAM, ScoreCAM
from gradcam_kit.errors import CaptureError, LayerNotFoundError
from gradcam_kit.functional import normalize, upsample

INPUT = images(3, size=(12, 12))


class Pyramid(nn.Module):
    """Maps of two resolutions, and a number that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        fine = self.fine(x).relu()
        return {"count": 2, "fine": fine, "coarse": self.coarse(fine).relu()}


@cache
def pyramid_model() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        maps = m.pyramid(x)
        return m.first(maps["fine"].mean((2, 3))) * m.second(maps["coarse"].mean((2, 3)))

    return build(run, pyramid=seeded(Pyramid()), first=nn.Linear(4, 3), second=nn.Linear(5, 3))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_levels_are_explained_one_by_one_and_fused(order: tuple[int, int]) -> None:
    model = pyramid_model()
    names = [f"pyramid:{level}" for level in order]
    found = GradCAM(model, names).explain(INPUT, 1)
    assert list(found.saliency) == list(found.layers) == names
    keys = ("fine", "coarse")
    alone = [GradCAM(model, "pyramid", reshape=lambda maps, key=key: maps[key]).explain(INPUT, 1) for key in keys]
    for level, one in enumerate(alone):
        assert_close(found.saliency[f"pyramid:{level}"], one.saliency["pyramid"])
        assert_close(GradCAM(model, f"pyramid:{level}")(INPUT, 1), one.heatmaps)
    maps = [upsample(normalize(one.saliency["pyramid"].clamp(min=0)), (12, 12)) for one in alone]
    assert_close(found.heatmaps, normalize((maps[0] + maps[1]) / 2))


@pytest.mark.parametrize("method", [ReciproCAM, ScoreCAM])
def test_changed_rows_of_a_level(method: Any) -> None:
    """The same model with its coarse map in a module of its own."""
    plain = build(
        lambda m, x: m.first((fine := m.pyramid.fine(x).relu()).mean((2, 3)))
        * m.second(m.coarse(m.pyramid.coarse(fine).relu()).mean((2, 3))),
        pyramid=pyramid_model().pyramid, first=nn.Linear(4, 3), second=nn.Linear(5, 3), coarse=nn.Identity(),
    )  # fmt: skip
    plain.load_state_dict(pyramid_model().state_dict())
    found = method(pyramid_model(), "pyramid:1", batch_size=7).explain(INPUT, 2)
    expected = method(plain, "coarse", batch_size=7).explain(INPUT, 2)
    assert_close(found.saliency["pyramid:1"], expected.saliency["coarse"])
    assert float(found.heatmaps.amax()) == 1


def test_reshape_lays_out_the_level() -> None:
    def reshape(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (6, 6)).movedim(3, 1)

    def run(m: Any, x: Tensor) -> Tensor:
        tokens = m.layer(x).flatten(2).movedim(1, 2)
        first, second = m.tokens(tokens)
        return m.fc((first.relu() * second).mean(1))

    class Twice(nn.Module):
        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens, tokens.flip(1) * 2

    model = build(run, layer=nn.Conv2d(3, 4, 3, stride=2, padding=1), tokens=Twice(), fc=nn.Linear(4, 3))
    names = ["tokens:0", "tokens:1"]
    found = GradCAM(model, names, reshape=reshape).explain(INPUT, 1)
    inferred = GradCAM(model, names).explain(INPUT, 1)
    for name in names:
        assert_close(found.saliency[name], inferred.saliency[name])
    assert not torch.allclose(found.saliency["tokens:0"], found.saliency["tokens:1"])


def test_levels_that_do_not_exist_are_named() -> None:
    for layer in ("pyramid", "pyramid:2"):
        with pytest.raises(CaptureError, match=r"\['pyramid:0', 'pyramid:1'\]"):
            GradCAM(pyramid_model(), layer)(INPUT, 0)
    with pytest.raises(LayerNotFoundError, match="'pyramids'; did you mean 'pyramid'"):
        GradCAM(pyramid_model(), "pyramids:1")


def test_a_module_may_have_a_colon_in_its_name() -> None:
    model = build(lambda m, x: m.fc(m.get_submodule("conv:1")(x).mean((2, 3))), fc=nn.Linear(4, 3))
    model.add_module("conv:1", seeded(nn.Conv2d(3, 4, 3)))
    expected = GradCAM(model, model.get_submodule("conv:1"))(INPUT, 0)
    assert torch.equal(GradCAM(model, "conv:1")(INPUT, 0), expected)

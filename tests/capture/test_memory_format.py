"""Pictures go through the model in channels-last order where that is faster, and as they are where they must."""

import gc

import pytest
import torch
from models import build
from torch import nn

from gradcam_kit import DeepFeatureFactorization, GradCAM, ScoreCAM, Smooth
from gradcam_kit.capture import rescoring
from gradcam_kit.capture.model import memory_format
from gradcam_kit.errors import TargetError

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN, so no other order")


@pytest.fixture(autouse=True)
def _small_pictures_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_format, "_SMALLEST", 64)


class Net(nn.Module):
    """Notes the order in memory of what it gets; `by_view` reads the maps in that order."""

    def __init__(self, by_view: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6 * 8 * 8, 4)
        self.by_view, self.seen = by_view, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(not images.is_contiguous())
        maps = self.features(images)
        return self.head(maps.view(len(maps), -1) if self.by_view else maps.flatten(1))


def make(by_view: bool = False) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    return Net(by_view).eval(), torch.randn(2, 3, 8, 8)


WAYS = {
    "grad-cam": lambda model: GradCAM(model, "features"),
    "score-cam": lambda model: ScoreCAM(model, "features"),
    "automatic layer": lambda model: GradCAM(model),
    "smooth": lambda model: Smooth(GradCAM(model, "features"), samples=2),
    "concepts": lambda model: DeepFeatureFactorization(model, "features", components=2),
}


@needs_onednn
@pytest.mark.parametrize("way", WAYS)
def test_pictures_arrive_in_channels_last_order(way: str) -> None:
    model, images = make()
    WAYS[way](model)(images)
    assert model.seen
    assert all(model.seen)
    assert images.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_reads_memory_order_gets_its_pictures_as_they_are(way: str) -> None:
    model, images = make(by_view=True)
    cam = WAYS[way](model)
    heatmaps = cam(images)
    assert model.seen[0]
    assert model.seen == sorted(model.seen, reverse=True)
    torch.testing.assert_close(heatmaps, WAYS[way](make()[0])(images), atol=1e-5, rtol=1e-5)
    assert not model.features._forward_hooks
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.seen.clear()
    cam(images)
    assert not any(model.seen)  # it was asked once


def test_what_refused_is_not_kept_alive() -> None:
    gc.collect()
    before = len(memory_format._refused)
    model, images = make(by_view=True)
    GradCAM(model, "features")(images)
    del model
    gc.collect()
    assert len(memory_format._refused) == before


def test_small_pictures_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model, images = make()
    GradCAM(model, "features")(images)
    assert model.seen == [False]


@needs_onednn
@pytest.mark.parametrize("problem", ["is_contiguous", "view_as_complex", "last axis of 4"])
def test_whatever_a_model_says_about_the_order(problem: str) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        maps = m.conv(x)
        if problem == "is_contiguous":
            assert maps.is_contiguous()
        if problem == "view_as_complex":
            return torch.view_as_complex(maps.unflatten(3, (-1, 2))).abs().flatten(1)[:, :4]
        return maps.view(len(maps), -1)[:, :4]

    torch.manual_seed(0)
    model = build(forward, conv=nn.Conv2d(2, 6, 3, padding=1))
    images = torch.randn(2, 2, 16, 4) if problem == "last axis of 4" else torch.randn(2, 2, 8, 8)
    assert GradCAM(model, "conv")(images).shape == (2, *images.shape[2:])


@needs_onednn
@pytest.mark.parametrize("by_view", [False, True])
def test_changed_images_are_scored_in_that_order_too(by_view: bool) -> None:
    model, images = make(by_view)
    with rescoring(model, images) as rescore:
        found = rescore(images, torch.arange(2))
    assert model.seen == ([True, False, False] if by_view else [True, True])
    with torch.no_grad():
        expected = model(images).softmax(1).amax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_the_output_is_laid_out_as_usual() -> None:
    model = build(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 6, 3, padding=1))
    explained = GradCAM(model, "conv").explain(torch.randn(2, 3, 8, 8), lambda output: output.mean((1, 2, 3)))
    assert explained.output.is_contiguous()


@pytest.mark.parametrize(
    ("error", "runs"), [(torch.OutOfMemoryError("full"), 1), (TargetError("no"), 1), (ValueError("odd"), 1)]
)
def test_errors_with_other_causes_are_raised(error: Exception, runs: int) -> None:
    model, images = make()

    def target(output: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error), match=str(error)):
        GradCAM(model, "features")(images, target)
    assert len(model.seen) == (runs if torch.backends.mkldnn.is_available() else 1)
    assert model not in memory_format._refused


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda images: images.to(memory_format=torch.channels_last)])
def test_double_precision_and_the_users_own_order_stay(change) -> None:
    model, images = make()
    images = change(images)
    GradCAM(model.to(images.dtype), "features")(images)
    assert model.seen == [not images.is_contiguous()]


@needs_onednn
def test_the_replayed_part_runs_in_the_same_order() -> None:
    seen = []

    class Tail(nn.Conv2d):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            seen.append(not maps.is_contiguous())
            return super().forward(maps)

    from gradcam_kit import AblationCAM

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Tail(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)
    ).eval()
    AblationCAM(model, "1")(torch.randn(2, 3, 8, 8))
    assert len(seen) > 1
    assert all(seen)

"""Replay: the part of a model behind a layer, alone, with the same scores as the whole model."""

from __future__ import annotations

import logging

import pytest
import torch
from models import images, seeded, tiny
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit import AblationCAM, BaseCAM, ReciproCAM
from gradcam_kit.capture.rerun.replay import Replayer
from gradcam_kit.types import Evidence


class Spy(BaseCAM):
    """Hands the capture of a layer to the test while it is alive."""

    needs = Evidence.REPLAY

    def __init__(self, *args, look, **options):
        super().__init__(*args, **options)
        self.look = look

    def saliency(self, layer):
        self.look(layer)
        return layer.activations.sum(1)


class UNet(nn.Module):
    """Skip connections from before the bottleneck, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bottom = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.up = nn.Conv2d(10, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = functional.relu(self.down1(x))
        deep = self.bottom(functional.relu(self.down2(fine)))
        joined = torch.cat([fine, functional.interpolate(deep, size=fine.shape[2:])], 1)
        return self.head(functional.relu(self.up(joined))).mean((2, 3))


class Residual(nn.Module):
    """Control flow that cannot be traced, a module that runs on both sides of the layer, in-place sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        if float(x.abs().sum()) > -1:
            out = self.block(x)
        out += x
        return self.fc(self.relu(out).mean((2, 3)))


class Overwriting(nn.Module):
    """Changes the output of an early module in place behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.block(x)
        x.mul_(0.5)
        return self.fc((out + x).relu().mean((2, 3)))


def run(model: nn.Module, layer: str, look, x: Tensor, targets=None, batch_size: int = 5) -> None:
    Spy(model, layer, look=look, batch_size=batch_size)(x, targets)


def scores_with(model: nn.Module, layer: str, x: Tensor, replacement: Tensor) -> Tensor:
    """Logits of the whole model with the layer's output replaced, by a plain hook."""
    handle = model.get_submodule(layer).register_forward_hook(lambda *_: replacement.clone())
    try:
        with torch.no_grad():
            return model(x)
    finally:
        handle.remove()


MODELS = {
    "tiny": (lambda: tiny(flatten=64), "stage1"),
    "tiny, in-place ReLU as layer": (tiny, "relu1"),
    "unet": (lambda: seeded(UNet()), "bottom"),
    "unet, before the skip": (lambda: seeded(UNet()), "down2"),
    "residual": (lambda: seeded(Residual()), "block"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_replay_equals_the_whole_model_and_runs_the_suffix_alone(name, batch_size):
    make, layer = MODELS[name]
    model, x = make().double(), images().double()
    index = torch.tensor([2, 0, 0, 1, 2, 2, 1])

    def look(captured):
        rows = captured.activations[index] * torch.rand(7, 1, 1, 1, generator=torch.Generator().manual_seed(3))
        expected = scores_with(model, layer, x[index], rows)[:, 3]
        torch.testing.assert_close(captured.replay(rows.clone(), index), expected)
        assert captured.replay.isolated is True

    run(model, layer, look, x, targets=3, batch_size=batch_size)


def test_modules_before_the_layer_run_once():
    model, x = seeded(UNet()).double(), images().double()
    runs = {"down1": 0, "down2": 0, "bottom": 0, "up": 0}
    for name in runs:
        inner = model.get_submodule(name).forward
        model.get_submodule(name).forward = lambda *a, _name=name, _inner=inner: (
            runs.__setitem__(_name, runs[_name] + 1) or _inner(*a)
        )
    AblationCAM(model, "bottom", batch_size=4)(x)
    assert (runs["down1"], runs["down2"], runs["bottom"]) == (1, 1, 1)
    assert runs["up"] > 2


@pytest.mark.parametrize("method", [AblationCAM, ReciproCAM])
@pytest.mark.parametrize("name", MODELS)
def test_suffix_and_full_pass_give_the_same_maps(method, name, monkeypatch):
    make, layer = MODELS[name]
    model, x = make().double(), images().double()
    alone = method(model, layer).explain(x).saliency[layer]
    monkeypatch.setattr(Replayer, "_can_isolate", lambda self: False)
    torch.testing.assert_close(alone, method(model, layer).explain(x).saliency[layer])


def test_a_prefix_that_is_overwritten_later_falls_back_and_says_so_at_debug_level(caplog):
    model, x = seeded(Overwriting()).double(), images().double()
    index = torch.tensor([0, 2])

    def look(captured):
        rows = captured.activations[index] * 0.5
        with caplog.at_level(logging.DEBUG, logger="gradcam_kit"):
            found = captured.replay(rows.clone(), index)
        torch.testing.assert_close(found, scores_with(model, "block", x[index], rows)[:, 1])
        assert captured.replay.isolated is False
        assert "block" in caplog.text

    run(model, "block", look, x, targets=1)


def test_a_hook_of_the_user_that_changes_outputs_falls_back():
    model, x = seeded(UNet()).double(), images().double()
    model.down1.register_forward_hook(lambda module, args, output: output + 1)
    index = torch.tensor([1, 0])

    def look(captured):
        rows = captured.activations[index] * 0.5
        torch.testing.assert_close(
            captured.replay(rows.clone(), index), scores_with(model, "bottom", x[index], rows)[:, 1]
        )
        assert captured.replay.isolated is False

    run(model, "bottom", look, x, targets=1)


def test_replay_leaves_activations_and_the_model_alone():
    model, x = tiny(flatten=64).double(), images().double()

    def look(captured):
        before = captured.activations.clone()
        captured.replay(captured.activations, torch.arange(3))
        assert torch.equal(captured.activations, before)
        assert not any("forward" in module.__dict__ for module in model.modules())

    run(model, "stage1", look, x)


def test_replay_restores_forward_when_the_suffix_raises():
    model, x = tiny().double(), images().double()

    def look(captured):
        captured.replay(captured.activations.clone(), torch.arange(3))
        handle = model.fc.register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            with pytest.raises(ZeroDivisionError):
                captured.replay(captured.activations.clone(), torch.arange(3))
        finally:
            handle.remove()
        assert not any("forward" in module.__dict__ for module in model.modules())

    run(model, "stage2", look, x)


def test_replay_scores_every_target_of_a_sample_from_one_pass():
    model, x = tiny(flatten=64).double(), images().double()
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])

    class Several(Spy):
        def saliencies(self, layer):
            index = torch.tensor([2, 1])
            found = layer.replay(layer.activations[index] * 0.5, index)
            logits = scores_with(model, "stage1", x[index], layer.activations[index] * 0.5)
            torch.testing.assert_close(found, logits.gather(1, targets[index]))
            return super().saliencies(layer)

    assert Several(model, "stage1", look=lambda layer: None)(x, targets).shape == (3, 2, 16, 16)


def test_ablation_fill_value_does_not_depend_on_batch_size():  # pitfall 57
    model, x = tiny(flatten=64).double(), images().double()
    maps = [AblationCAM(model, "stage1", batch_size=b).explain(x).saliency["stage1"] for b in (1, 7, 6)]
    torch.testing.assert_close(maps[0], maps[1])
    torch.testing.assert_close(maps[0], maps[2])


def test_ablation_is_unchanged_by_a_constant_added_to_all_logits():  # pitfall 58
    def saliency(bias: float) -> Tensor:
        model = tiny(flatten=64).double()
        with torch.no_grad():
            model.fc.bias += bias
        found = AblationCAM(model, "stage1").explain(images().double(), 1)
        return found.saliency["stage1"] * found.scores.abs()[:, None, None]

    torch.testing.assert_close(saliency(3.0), saliency(-3.0))


def test_ablation_of_a_share_ablates_exactly_that_many_channels():  # pitfall 59
    model, x = tiny(flatten=64).double(), images(1).double()
    seen = []

    class Counting(AblationCAM):
        def _ablate(self, layer, rows):
            seen.extend(rows[:, 1].tolist())
            return super()._ablate(layer, rows)

    Counting(model, "stage1", channels=0.5)(x)
    assert len(set(seen)) == 3

"""Which axes of the images are positions, and which axes of a layer: read from the model, never from lucky sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, images
from torch import Tensor, nn

from gradcam_kit import GradCAM, LayerCAM, ScoreCAM
from gradcam_kit.capture import read_inputs
from gradcam_kit.errors import ShapeError


def clips(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def volumes(frames_first: bool, channels: int = 3) -> nn.Module:
    return build(
        lambda m, x: m.fc(m.layer(x.transpose(1, 2) if frames_first else x).relu().mean((2, 3, 4))),
        layer=nn.Conv3d(channels, 6, 3, 2, 1),
        fc=nn.Linear(6, 4),
    )


def tubes() -> nn.Module:
    """Tokens of a video `(n, t, c, h, w)`: patches of single frames, one frame after the other behind a class token."""

    def run(m: Any, x: Tensor) -> Tensor:
        tokens = m.patch(x.flatten(0, 1)).flatten(2).mT.unflatten(0, x.shape[:2]).flatten(1, 2)
        tokens = m.norm(torch.cat([m.token.weight.expand(len(x), -1, -1), tokens], 1))
        return m.fc((tokens + (tokens @ tokens.mT).softmax(-1) @ tokens)[:, 0])

    return build(run, patch=nn.Conv2d(3, 6, 8, 8), token=nn.Embedding(1, 6), norm=nn.LayerNorm(6), fc=nn.Linear(6, 4))


# Time and channels


@pytest.mark.parametrize("frames", [3, 4, 5])
def test_frames_in_front_of_the_channels(frames: int) -> None:
    first, second = volumes(True), volumes(False)
    x = clips(2, frames, 3, 16, 16)
    for cam in (GradCAM, ScoreCAM, LayerCAM):
        found, expected = cam(first).explain(x, 1), cam(second, "layer").explain(x.transpose(1, 2), 1)
        assert found.heatmaps.shape == (2, frames, 16, 16)
        assert torch.allclose(found.heatmaps, cam(second)(x.transpose(1, 2), 1), atol=1e-6)
        assert expected.heatmaps.shape == found.heatmaps.shape
    assert GradCAM(second)(clips(2, 3, frames, 16, 16)).shape == (2, frames, 16, 16)


@pytest.mark.parametrize("frames", [3, 4])
def test_tokens_of_frames_are_no_picture(frames: int) -> None:
    model, x = tubes(), clips(2, frames, 3, 16, 16)
    found = GradCAM(model, "norm").explain(x, 1)
    by_hand = GradCAM(model, "norm", reshape=lambda t: t[:, 1:].mT.unflatten(2, (frames, 2, 2))).explain(x, 1)
    assert found.saliency["norm"].shape == (2, frames, 2, 2)
    assert torch.equal(found.heatmaps, by_hand.heatmaps)
    assert found.heatmaps.shape == (2, frames, 16, 16)


def test_a_video_whose_axes_nobody_tells_apart_is_refused() -> None:
    model = build(lambda m, x: m.fc(m.layer(x).mean((2, 3, 4))), layer=nn.MaxPool3d(2, 2), fc=nn.Linear(4, 3))
    with pytest.raises(ShapeError, match=r"read as \(n, c, t, h, w\) with 4 channels or as \(n, t, c, h, w\) with 6"):
        GradCAM(model)(clips(2, 4, 6, 8, 8))


# Time and frequency


class Spectrogram(nn.Module):
    """Patches of a spectrogram `(n, time, frequency)`, which overlap along the frequencies."""

    def __init__(self, stride: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.norm, self.fc = nn.Conv2d(1, 6, 4, stride), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patch(x[:, None].mT).flatten(2).mT)
        return self.fc((tokens + (tokens @ tokens.mT).softmax(-1) @ tokens).mean(1))


@pytest.mark.parametrize(
    ("size", "stride", "grid"), [((16, 8), (4, 4), (4, 2)), ((16, 16), (2, 4), (4, 7)), ((8, 24), (4, 2), (3, 6))]
)
def test_spectrograms_have_two_position_axes(
    size: tuple[int, int], stride: tuple[int, int], grid: tuple[int, int]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Spectrogram(stride).eval()
    x = clips(2, *size)
    found = GradCAM(model, "norm").explain(x, 1)
    assert found.saliency["norm"].shape == (2, *grid)
    assert found.heatmaps.shape == ScoreCAM(model, "norm")(x, 1).shape == (2, *size)
    tokens = model.norm(model.patch(x[:, None].mT).flatten(2).mT).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        model.fc((tokens + (tokens @ tokens.mT).softmax(-1) @ tokens).mean(1))[:, 1].sum(), tokens
    )
    saliency = (gradient.mean(1, keepdim=True) * tokens).sum(2).unflatten(1, grid[::-1]).mT  # frequency after frequency
    assert torch.allclose(found.saliency["norm"], saliency, atol=1e-6)


def test_signals_keep_their_channels() -> None:
    signal = build(lambda m, x: m.fc(m.layer(x).relu().mean(2)), layer=nn.Conv1d(3, 6, 3), fc=nn.Linear(6, 4))
    assert GradCAM(signal)(clips(2, 3, 20)).shape == (2, 20)
    assert read_inputs(clips(2, 3, 20), {}, signal).channels == 1


# Axes of the same size


def test_as_many_channels_as_positions_channels_last() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        maps = m.norm(m.patch(x).movedim(1, -1))
        return m.fc(m.act(m.hidden(maps)).mean((1, 2)))

    parts = {"patch": nn.Conv2d(3, 4, 4, 4), "norm": nn.LayerNorm(4), "hidden": nn.Linear(4, 4), "act": nn.GELU()}
    model, x = build(run, fc=nn.Linear(4, 3), **parts), images(2)
    for layer in ("norm", "hidden", "act"):  # all of them (2, 4, 4, 4)
        found = GradCAM(model, layer).explain(x, 1).saliency[layer]
        by_hand = GradCAM(model, layer, reshape=lambda maps: maps.movedim(-1, 1)).explain(x, 1).saliency[layer]
        assert torch.equal(found, by_hand)
    found = GradCAM(model, "patch").explain(x, 1).saliency["patch"]
    assert torch.equal(found, GradCAM(model, "patch", reshape=lambda maps: maps).explain(x, 1).saliency["patch"])


@pytest.mark.parametrize("channels", [8, 20])
def test_as_many_channels_as_the_signal_is_long(channels: int) -> None:
    # (n, 20, 8) and (n, 8, 8) of signals of length 20 and 8: the positions are behind the channels.
    length, stride = (20, 2) if channels == 20 else (16, 2)
    model = build(
        lambda m, x: m.fc(m.act(m.layer(x)).mean(2)), layer=nn.Conv1d(3, channels, 4, stride, 1), act=nn.ReLU(),
        fc=nn.Linear(channels, 4),
    )  # fmt: skip
    x = clips(2, 3, length)
    for layer in ("layer", "act"):
        found = GradCAM(model, layer).explain(x, 1).saliency[layer]
        assert torch.equal(found, GradCAM(model, layer, reshape=lambda maps: maps).explain(x, 1).saliency[layer])
        assert found.shape == (2, length // stride)


@pytest.mark.parametrize("n", [2, 16])
def test_as_many_samples_as_tokens_tokens_first(n: int) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.norm(m.patch(x).flatten(2).permute(2, 0, 1)).mean(0))

    model = build(run, patch=nn.Conv2d(3, 6, 4, 4), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3))
    assert GradCAM(model).explain(images(n)).layers == ("patch",)
    message = "its samples lie along axis 1, not along the first one" if n == 16 else "for 2 images"
    with pytest.raises((ShapeError, ValueError, RuntimeError), match=message):
        GradCAM(model, "norm")(images(n))


SEQUENCES = {
    "convolution and LSTM": lambda: build(
        lambda m, x: m.fc(m.lstm(m.conv(x.mT).relu().mT)[0][:, -1]),
        conv=nn.Conv1d(6, 8, 5, padding=2),
        lstm=nn.LSTM(8, 8, batch_first=True),
        fc=nn.Linear(8, 3),
    ),
    "LSTM": lambda: build(
        lambda m, x: m.fc(m.lstm(x)[0].mean(1)), lstm=nn.LSTM(6, 8, batch_first=True), fc=nn.Linear(8, 3)
    ),
    "transformer": lambda: build(
        lambda m, x: m.fc(m.encoder(m.embed(x)).mean(1)),
        embed=nn.Linear(6, 8),
        encoder=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        fc=nn.Linear(8, 3),
    ),
}


@pytest.mark.parametrize("length", [20, 6])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_series_with_their_channels_last_get_maps_over_time(kind: str, length: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SEQUENCES[kind]().eval()
    series = clips(2, length, 6)
    assert read_inputs(series, {}, model).channels == 2
    found = GradCAM(model).explain(series, 1)
    [saliency] = found.saliency.values()
    assert saliency.shape == found.heatmaps.shape == (2, length)

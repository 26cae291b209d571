"""Maps of frames against a transcription, in every way in which a model may hold its frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import temporal_cam
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, OptionError, ShapeError, UnknownNameError
from gradcam_kit.functional import normalize, upsample

CLIP = torch.randn(2, 5, 3, 16, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KINDS = ("clip first", "frame first", "loop", "own axis", "folded input")


class Net(nn.Module):
    """A CNN over frames, then an LSTM or attention over them."""

    def __init__(self, kind: str = "clip first", attention: bool = False) -> None:
        super().__init__()
        self.conv, self.act, self.frames = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Identity()
        self.lstm, self.score, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 1), nn.Linear(8, 4)
        self.kind, self.attention = kind, attention

    def maps(self, clip: Tensor) -> Tensor:
        if self.kind == "loop":
            return torch.stack([self.act(self.conv(clip[:, i])) for i in range(clip.shape[1])], 1)
        if self.kind == "folded input":
            return self.act(self.conv(clip)).unflatten(0, (-1, 5))
        if self.kind == "frame first":
            n, t = clip.shape[:2]
            return self.act(self.conv(clip.transpose(0, 1).flatten(0, 1))).unflatten(0, (t, n)).transpose(0, 1)
        return self.frames(self.act(self.conv(clip.flatten(0, 1))).unflatten(0, clip.shape[:2]))

    def behind(self, maps: Tensor) -> Tensor:
        features = maps.mean((3, 4))
        if self.attention:
            return self.head((self.score(features).softmax(1) * features).sum(1))
        return self.head(self.lstm(features)[0][:, -1])

    def forward(self, clip: Tensor) -> Tensor:
        return self.behind(self.maps(clip))


def net(kind: str = "clip first", attention: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(kind, attention).double()


def transcribe(model: Net, targets: list[int]) -> np.ndarray:
    """Grad-CAM of each frame with loops: the weight of a channel is the mean gradient in its own frame."""
    found = np.zeros((2, 5, 8, 6))
    for i, target in enumerate(targets):
        maps = model.maps(CLIP[i : i + 1]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.behind(maps)[0, target], maps)
        for t in range(5):
            for k in range(8):
                found[i, t] += gradient[0, t, k].mean().item() * maps[0, t, k].detach().numpy()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", [False, True])
def test_every_frame_equals_a_transcription(kind: str, attention: bool) -> None:
    model = net(kind, attention).train()
    clip = CLIP.flatten(0, 1) if kind == "folded input" else CLIP
    layer = "frames" if kind == "own axis" else "act"
    with unchanged(model, clip):
        explanation = temporal_cam(model, clip, layer, [1, 2], frames=5 if kind == "folded input" else None)
    expected = transcribe(net("clip first", attention).eval(), [1, 2])
    np.testing.assert_allclose(explanation.saliency, expected, atol=1e-9)
    positive = expected.clip(0)
    weights = positive.sum((2, 3)) / positive.sum((1, 2, 3))[:, None]
    np.testing.assert_allclose(explanation.weights, weights, atol=1e-6)
    maps = normalize(upsample(torch.from_numpy(positive), (5, 16, 12)))
    np.testing.assert_allclose(explanation.heatmaps, maps, atol=1e-6)
    assert (explanation.layer, explanation.targets.tolist()) == (layer, [1, 2])


def test_a_video_network_and_several_targets() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 8, 3, (2, 2, 2), 1)
    model = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4)).double()
    explanation = temporal_cam(model, CLIP.transpose(1, 2), "1", [[1, 2], [0, 3]])
    assert explanation.saliency.shape == (2, 2, 3, 8, 6)  # every second frame
    assert explanation.heatmaps.shape == (2, 2, 5, 16, 12)
    torch.testing.assert_close(explanation.weights.sum(-1), torch.ones(2, 2))
    single = temporal_cam(model, CLIP.transpose(1, 2), "1", [2, 3])
    torch.testing.assert_close(explanation.heatmaps[:, 1], single.heatmaps)


def test_predicted_class_one_clip_and_another_method() -> None:
    model = net("frame first")
    explanation = temporal_cam(model, CLIP, "act", method="hires-cam")
    assert explanation.targets.tolist() == model.eval()(CLIP).argmax(1).tolist()
    alone = [temporal_cam(model, own[None], model.act, method="hires-cam").saliency for own in CLIP]
    torch.testing.assert_close(torch.cat(alone), explanation.saliency)


def test_one_frame_that_counts() -> None:
    class Third(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, clip: Tensor) -> Tensor:
            return self.conv(clip.flatten(0, 1)).square().mean((2, 3)).unflatten(0, clip.shape[:2])[:, 2]

    explanation = temporal_cam(Third().double(), CLIP, "conv", 0)
    assert explanation.weights.argmax(1).tolist() == [2, 2]
    torch.testing.assert_close(explanation.weights[:, 2], torch.ones(2))
    assert not explanation.is_empty.any()
    nothing = temporal_cam(Third().double(), CLIP, "conv", lambda output: -output.sum(1), method="hires-cam")
    assert nothing.is_empty.all()
    assert nothing.weights.eq(0).all()
    assert nothing.heatmaps.eq(0).all()
    assert nothing.targets is None


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((CLIP, "conx"), {}, LayerNotFoundError, "did you mean 'conv'"),
        ((CLIP, ["conv", "act"]), {}, InputError, "names 2 layers"),
        ((CLIP, "lstm"), {}, ShapeError, "no positions"),
        ((CLIP, "head"), {}, ShapeError, r"ran 1 time\(s\) and returned \(2, 4\) for 2 clip\(s\) of 5 frames"),
        ((CLIP, "score"), {}, CaptureError, "'score' did not run"),
        ((CLIP[0], "act"), {}, ShapeError, r"clip has shape \(5, 3, 16, 12\); expected \(n, t, c, h, w\)"),
        ((CLIP[0], "act"), {"frames": 3}, ShapeError, "frames is 3"),
        (("clip", "act"), {"frames": 3}, InputError, "clip is a str"),
        ((CLIP, "act"), {"method": "score-cam"}, OptionError, "needs more than activations and gradients"),
        ((CLIP, "act"), {"method": "grad-camm"}, UnknownNameError, "grad-cam"),
        ((CLIP, "act"), {"normalize": "mean"}, OptionError, "normalize"),
    ],
)
def test_wrong_arguments_are_one_line(args: Any, options: Any, error: type[Exception], words: str) -> None:
    model = net()
    with pytest.raises(error, match=words) as raised, unchanged(model):
        temporal_cam(model, *args, **options)
    assert "\n" not in str(raised.value)


def test_rows_with_two_readings_are_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, clip: Tensor) -> Tensor:
            rows = clip.flatten(0, 1)
            return self.conv(rows + rows.mean(0)).mean((2, 3)).unflatten(0, clip.shape[:2]).mean(1)

    with pytest.raises(ShapeError, match=r"as clip after clip or as frame after frame.*both clips"):
        temporal_cam(Mixed().double(), CLIP, "conv", 0)

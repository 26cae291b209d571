"""`reshape` is called first, whatever a layer's output looks like, and may give the maps other axes than the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import assert_same
from models import build, seeded
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import METHODS, AblationCAM, GradCAM, IntegratedGradCAM, LayerCAM, ReciproCAM, ScoreCAM, Smooth
from gradcam_kit.capture import heatmap_size
from gradcam_kit.capture.recording import LayerRecord
from gradcam_kit.capture.rerun.native import native_rows
from gradcam_kit.errors import CaptureError, ShapeError
from gradcam_kit.functional import normalize, upsample


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TokensFirst(nn.Module):
    """A block of tokens `(tokens, n, d)`, as nn.MultiheadAttention takes them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x).relu()


def tokens_model() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).permute(2, 0, 1)
        x = m.block2(m.block1(torch.cat([x[:1] * 0 + 1, x])))
        return m.fc(x[0])

    parts = {"patches": nn.Conv2d(3, 8, 4, 4), "block1": TokensFirst(), "block2": TokensFirst()}
    return build(run, **parts, fc=nn.Linear(8, 5)).double()


def frames_model() -> nn.Module:
    """Clips `(n, t, c, h, w)`: a network of pictures on every frame, then a recurrent layer."""

    def run(m: Any, x: Tensor) -> Tensor:
        frames = m.features(x.flatten(0, 1)).mean((2, 3)).view(*x.shape[:2], -1)
        return m.fc(m.lstm(frames)[0][:, -1])

    features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
    return build(run, features=features, lstm=nn.LSTM(6, 8, batch_first=True), fc=nn.Linear(8, 5)).double()


def waveform_model() -> nn.Module:
    """A spectrogram made inside of the model `(n, 1, time)`, of which it sees `(n, 1, frequency, frames)`."""

    def run(m: Any, x: Tensor) -> Tensor:
        spectrum = torch.stft(x[:, 0], 32, 16, window=torch.hann_window(32, dtype=x.dtype), return_complex=True)
        return m.fc(m.features(spectrum.real[:, None]).mean((2, 3)))

    return build(run, features=nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU()), fc=nn.Linear(6, 5)).double()


def leads_model() -> nn.Module:
    """A signal `(n, 12, time)` whose leads pass one network one by one, in the order lead, sample."""

    def run(m: Any, x: Tensor) -> Tensor:
        rows = m.features(x.transpose(0, 1).flatten(0, 1)[:, None])
        return m.fc(rows.mean(2).unflatten(0, (12, -1)).mean(0))

    return build(run, features=nn.Sequential(nn.Conv1d(1, 6, 5, 2, 2), nn.ReLU()), fc=nn.Linear(6, 5)).double()


FAMILY = {
    "tokens first": (tokens_model, "block1", draw(2, 3, 16, 16), lambda y: y[1:].permute(1, 2, 0).unflatten(2, (4, 4))),
    "frames": (frames_model, "features", draw(2, 4, 3, 12, 12), lambda y: y.unflatten(0, (-1, 4)).movedim(1, 2)),
    "waveform": (waveform_model, "features", draw(2, 1, 400), lambda y: y.clone()),
    "leads": (leads_model, "features", draw(2, 12, 64), lambda y: y.unflatten(0, (12, -1)).permute(1, 2, 0, 3)),
}
SIZES = {"tokens first": (16, 16), "frames": (4, 12, 12), "waveform": (9, 13), "leads": (12, 64)}


def captured(model: nn.Module, layer: str, images: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """The output of a layer, and the gradient of a class there, by hand."""
    kept = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda m, args, output: kept.update(output=output))
    score = model(images)[:, target].sum()
    handle.remove()
    return kept["output"].detach(), torch.autograd.grad(score, kept["output"])[0]


@pytest.mark.parametrize("name", FAMILY)
def test_maps_are_those_computed_by_hand_and_heatmaps_have_the_axes_of_the_layer(name):
    make, layer, images, reshape = FAMILY[name]
    model = make()
    activations, gradients = map(reshape, captured(model, layer, images, 2))
    axes = tuple(range(2, activations.ndim))
    expected = {
        GradCAM: (gradients.mean(axes, keepdim=True) * activations).sum(1),
        LayerCAM: (gradients.clamp(min=0) * activations).sum(1),
    }
    for method, maps in expected.items():
        found = method(model, layer, reshape=reshape).explain(images, 2)
        assert_same(found.saliency[layer], maps.numpy())
        resized = upsample(normalize(maps.clamp(min=0)), SIZES[name])
        assert_close(found.heatmaps, normalize(resized).float())
        several = method(model, layer, reshape=reshape).explain(images, [[2, 1], [0, 1]])
        assert_close(several.heatmaps[0, 0], found.heatmaps[0])
        assert several.heatmaps.shape == (2, 2, *SIZES[name])


@pytest.mark.parametrize("name", FAMILY)
def test_a_batch_equals_one_by_one(name):
    make, layer, images, reshape = FAMILY[name]
    cam = GradCAM(make(), layer, reshape=reshape)
    assert_close(cam(images, 1), torch.cat([cam(one[None], 1) for one in images]))


@pytest.mark.parametrize("name", FAMILY)
def test_replayed_and_probed_rows_are_laid_out_by_it_too(name):
    make, layer, images, reshape = FAMILY[name]
    model = make()
    output, _ = captured(model, layer, images, 1)
    kept = ReciproCAM(model, layer, reshape=reshape).explain(images, 1).saliency[layer]
    places = reshape(torch.arange(output.numel()).view(output.shape))
    scores = torch.zeros_like(kept)
    for sample in range(2):
        for position in torch.cartesian_prod(*map(torch.arange, kept.shape[1:])).tolist():
            stay = places[(sample, slice(None), *position)]
            changed = output.clone().flatten()
            drop = places[sample].flatten()
            drop = drop[~torch.isin(drop, stay)]
            changed[drop] = 0
            handle = model.get_submodule(layer).register_forward_hook(lambda *_, c=changed, o=output: c.view_as(o))
            with torch.no_grad():
                scores[(sample, *position)] = model(images)[sample, 1]
            handle.remove()
    lowest = scores.flatten(1).amin(1).view(-1, *(1 for _ in kept.shape[1:]))
    assert_same(kept, (scores - lowest).numpy())
    alone = torch.cat([ReciproCAM(model, layer, reshape=reshape).explain(x[None], 1).saliency[layer] for x in images])
    assert_same(kept, alone.numpy())
    for cam in (AblationCAM(model, layer, reshape=reshape), IntegratedGradCAM(model, layer, reshape=reshape, steps=3)):
        assert_close(cam(images, 1), torch.cat([cam(one[None], 1) for one in images]))
    assert Smooth(GradCAM(model, layer, reshape=reshape), samples=2)(images, 1).shape == (2, *SIZES[name])


@pytest.mark.parametrize("name", ["waveform", "leads"])
def test_methods_that_mask_the_images_say_that_the_axes_differ(name):
    make, layer, images, reshape = FAMILY[name]
    for method in ("score-cam", "group-cam", "sess", "guided-grad-cam"):
        with pytest.raises(ShapeError, match=r"lays the maps of layer 'features' over the images.*such as GradCAM"):
            METHODS[method](make(), layer, reshape=reshape)(images, 1)
    make, layer, images, reshape = FAMILY["tokens first"]
    assert ScoreCAM(make(), layer, reshape=reshape)(images, 1).shape == (2, 16, 16)


def test_a_reshape_for_one_number_of_samples_or_with_arithmetic_says_what_to_do():
    make, layer, images, _ = FAMILY["frames"]
    fixed = GradCAM(make(), layer, reshape=lambda y: y.unflatten(0, (2, 4)).movedim(1, 2))
    assert fixed(images, 1).shape == (2, 4, 12, 12)
    with pytest.raises(ShapeError, match=r"reshape failed on an output of \[\(4, 6, 6, 6\)\].*-1 in place of n"):
        fixed(images[:1], 1)
    mean = {"reshape": lambda y: y.unflatten(0, (-1, 4)).mean(1)}
    assert GradCAM(make(), layer, **mean)(images, 1).shape == (2, 12, 12)
    with pytest.raises(CaptureError, match=r"cannot be inverted.*without arithmetic"):
        ReciproCAM(make(), layer, **mean)(images, 1)


def test_the_tensor_that_it_takes_the_maps_from_is_the_one_that_is_replayed():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return x.mean((2, 3)), [x, 2 * x]

    def run(m: Any, x: Tensor) -> Tensor:
        _, (first, second) = m.two(m.conv(x).relu())
        return m.fc((first * second).mean((2, 3)))

    model = build(run, conv=nn.Conv2d(3, 6, 3, 2), two=Two(), fc=nn.Linear(6, 5)).double()
    images = draw(2, 3, 8, 8)
    plain = build(
        lambda m, x: m.fc(((y := m.conv(x).relu()) * m.twice(y)).mean((2, 3))),
        conv=model.conv, twice=seeded(nn.Conv2d(6, 6, 1, groups=6, bias=False)), fc=model.fc,
    ).double()  # fmt: skip
    plain.load_state_dict({**model.state_dict(), "twice.weight": torch.full((6, 1, 1, 1), 2.0)})
    found = ReciproCAM(model, "two", reshape=lambda output: output[1][1]).explain(images, 1).saliency["two"]
    assert_same(found, ReciproCAM(plain, "twice").explain(images, 1).saliency["twice"].numpy())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("layout", ["tokens first", "folded", "interleaved"])
def test_changed_rows_go_back_to_where_they_came_from(layout, n):
    from gradcam_kit.capture.layouts import Custom

    shapes = {"tokens first": (5, n, 7), "folded": (n * 4, 7, 2), "interleaved": (4 * n, 7, 2)}
    reshapes = {
        "tokens first": lambda y: y[1:].permute(1, 2, 0),
        "folded": lambda y: y.unflatten(0, (-1, 4)).movedim(2, 1),
        "interleaved": lambda y: y.unflatten(0, (4, -1)).permute(1, 2, 0, 3),
    }
    output, reshape = draw(*shapes[layout]), reshapes[layout]
    record = LayerRecord("layer", nn.Identity(), leaves=[output], chosen=[0], layout=Custom(reshape))
    record.spec = torch.utils._pytree.tree_flatten(output)[1]
    index = torch.arange(n + 2) % n
    maps = reshape(output)[index] + 1
    place, rows = native_rows(record, maps, index, n)
    assert place == 0
    assert torch.equal(reshape(rows), maps)
    assert rows.numel() == output.numel() // n * (n + 2)


@pytest.mark.parametrize(
    ("positions", "image", "expected"),
    [
        ((4, 4), (3, 16, 16), (16, 16)),
        ((2, 4, 4), (3, 8, 16, 16), (8, 16, 16)),
        ((2, 8, 8), (3, 8, 32, 32), (8, 32, 32)),  # every fourth frame
        ((40, 25), (1, 16000), (40, 25)),  # frequency and time: any length fits a single axis
        ((12, 50), (12, 400), (12, 400)),  # leads
        ((9, 7, 7), (9, 28, 28), (9, 28, 28)),  # slices
        ((7, 7), (3, 8, 28, 28), (28, 28)),  # without the frames
        ((25,), (3, 32, 100), (25,)),
        ((6, 5, 9), (1, 28, 28), (6, 5, 9)),
    ],
)
def test_only_axes_of_the_images_are_resized(positions, image, expected):
    assert heatmap_size(positions, image) == expected

"""Of several inputs the images are the one on which the layers depend, or the one that is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import assert_same
from models import build
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import FullGrad, GradCAM, GuidedGradCAM, IntegratedGradCAM, ScoreCAM, Smooth, compare, explain_all
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import InputError
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.methods import DeepFeatureFactorization


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stage(channels: int, kind: Any = nn.Conv2d) -> nn.Module:
    return nn.Sequential(kind(channels, 6, 3, 2, 1), nn.ReLU())


def rgb_and_depth() -> nn.Module:
    """A tower for each of two inputs of different sizes, and a layer behind both."""

    def run(m: Any, rgb: Tensor, depth: Tensor) -> Tensor:
        a, b = m.rgb(rgb), m.depth(depth)
        joint = m.joint(torch.cat([a, upsample(b.flatten(0, 1), a.shape[2:]).view_as(a)], 1))
        return m.fc(torch.cat([joint.mean((2, 3)), b.mean((2, 3))], 1))

    return build(run, rgb=stage(3), depth=stage(1), joint=stage(12), fc=nn.Linear(12, 5)).double()


def text_and_image() -> nn.Module:
    """Text embeddings with one axis of positions, and a picture."""
    run = lambda m, text, image: m.fc(m.image(image).mean((2, 3)) + m.text(text.movedim(1, 2)).mean(2))  # noqa: E731
    return build(run, image=stage(3), text=stage(16, nn.Conv1d), fc=nn.Linear(6, 5)).double()


RGB, DEPTH, TEXT = draw(2, 3, 12, 12), draw(2, 1, 20, 20, seed=1), draw(2, 9, 16, seed=2)


def masked_by_hand(model: nn.Module, call: Any, images: Tensor, activations: Tensor, target: int) -> Tensor:
    """Score-CAM, with the masks laid over `images`; `call` runs the model for the changed images of one sample."""
    maps = []
    for sample, channels in enumerate(activations):
        masks = normalize(upsample(channels, images.shape[2:]))[:, None]
        scores = torch.stack([call(images[sample : sample + 1] * mask, sample)[0, target] for mask in masks])
        maps.append(torch.einsum("k,khw->hw", scores.softmax(0), channels))
    return torch.stack(maps)


@torch.no_grad()
def test_masks_are_laid_over_the_input_that_the_layer_sees():
    model = rgb_and_depth()
    on_rgb = masked_by_hand(model, lambda x, i: model(x, DEPTH[i : i + 1]), RGB, model.rgb(RGB), 1)
    on_depth = masked_by_hand(model, lambda x, i: model(RGB[i : i + 1], x), DEPTH, model.depth(DEPTH), 1)
    for inputs in ((RGB, DEPTH), {"rgb": RGB, "depth": DEPTH}, {"depth": DEPTH, "rgb": RGB}):
        assert_same(ScoreCAM(model, "rgb").explain(inputs, 1).saliency["rgb"], on_rgb.numpy())
        found = ScoreCAM(model, "depth").explain(inputs, 1)
        assert_same(found.saliency["depth"], on_depth.numpy())
        assert found.heatmaps.shape == (2, 20, 20)
    first, second = explain_all([ScoreCAM(model, "depth"), ScoreCAM(model, "rgb")], (RGB, DEPTH), 1)
    assert_close(first, found.heatmaps)
    assert second.shape == (2, 12, 12)


def test_the_picture_is_found_behind_a_text():
    model = text_and_image()
    for inputs in ((TEXT, RGB), {"text": TEXT, "image": RGB}):
        for layer in ("image", None):
            found = GradCAM(model, layer).explain(inputs, 1)
            assert found.layers == ("image",)
            assert found.heatmaps.shape == (2, 12, 12)
    assert_close(GradCAM(model, "image")(TEXT, 1, image=RGB), found.heatmaps)
    alone = build(
        lambda m, image: m.fc(m.image(image).mean((2, 3)) + m.shift), image=stage(3), fc=nn.Linear(6, 5)
    ).double()
    alone.shift = model.text(TEXT.movedim(1, 2)).mean(2).detach()
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if "text" not in name})
    assert_close(found.heatmaps, GradCAM(alone, "image")(RGB, 1))
    text = GradCAM(model, "text", reshape=lambda maps: maps).explain((TEXT, RGB), 1)
    assert text.saliency["text"].shape == (2, 5)


def test_the_input_can_be_named():
    model = rgb_and_depth()
    for depth, inputs in ((1, (RGB, DEPTH)), ("depth", {"rgb": RGB, "depth": DEPTH})):
        found = ScoreCAM(model, "joint", image_input=depth)(inputs, 1)
        assert found.shape == (2, 20, 20)
        assert ScoreCAM(model, "joint")(inputs, 1).shape == (2, 12, 12)
        assert FullGrad(model, image_input=depth)(inputs, 1).shape == (2, 20, 20)
        assert GuidedGradCAM(model, "depth")(inputs, 1).shape == (2, 20, 20)
        assert IntegratedGradCAM(model, "depth", steps=2)(inputs, 1).shape == (2, 20, 20)
        assert Smooth(GradCAM(model, "depth"), samples=2)(inputs, 1).shape == (2, 20, 20)
        assert DeepFeatureFactorization(model, "depth", components=2)(inputs).shape == (2, 2, 20, 20)
        with rescoring(model, inputs, 1, image_input=depth) as rescore:
            changed = rescore(0 * DEPTH, torch.arange(2))
        assert_close(changed, model(RGB, 0 * DEPTH).softmax(1)[:, 1].detach())
    assert "image_input=1" in repr(ScoreCAM(model, "joint", image_input=1))


def test_inputs_that_do_not_fit_are_refused():
    model = rgb_and_depth()
    with pytest.raises(
        InputError, match=r"'rgb' on argument 0; 'depth' on argument 1.*cannot be fused; explain the layers one by"
    ):
        GradCAM(model, ["rgb", "depth"])((RGB, DEPTH), 1)
    with pytest.raises(
        InputError, match=r"image_input is 0, but the layers depend on other inputs: 'depth' on argument 1"
    ):
        GradCAM(model, "depth", image_input=0)((RGB, DEPTH), 1)
    with pytest.raises(InputError, match=r"image_input is 'deep', but the inputs of the model are 'rgb', 'depth'"):
        GradCAM(model, "depth", image_input="deep")({"rgb": RGB, "depth": DEPTH}, 1)
    with pytest.raises(InputError, match=r"image_input is 1, which is torch.int64 \(2, 9\); expected a floating"):
        GradCAM(model, "rgb", image_input=1)((RGB, torch.zeros(2, 9).long()), 1)
    assert GradCAM(model, ["rgb", "joint"])((RGB, DEPTH), 1).shape == (2, 12, 12)


def test_a_tower_that_is_cut_off_counts_for_every_input():
    def run(m: Any, rgb: Tensor, depth: Tensor) -> Tensor:
        with torch.no_grad():
            seen = m.depth(depth)
        return m.fc(m.rgb(rgb).mean((2, 3)) + seen.mean((2, 3)))

    model = build(run, rgb=stage(3), depth=stage(1), fc=nn.Linear(6, 5)).double()
    assert GradCAM(model, "rgb")((RGB, DEPTH), 1).shape == (2, 12, 12)
    assert ScoreCAM(model, "depth", image_input=1)((RGB, DEPTH), 1).shape == (2, 20, 20)


def test_deletion_and_insertion_change_the_input_that_is_explained():
    pytest.importorskip("pandas")
    model, rgb, depth = rgb_and_depth(), RGB[:1], DEPTH[:1]
    alone = build(lambda m, x: m.both(rgb.expand(len(x), -1, -1, -1), x), both=rgb_and_depth()).double()
    alone.both.load_state_dict(model.state_dict())
    metrics = ["deletion", "average-drop"]
    options = {"methods": ["score-cam"], "targets": 1, "metrics": metrics, "cost": False, "baselines": False}
    found = compare(model, (rgb, depth), target_layers="depth", **options).table
    expected = compare(alone, depth, target_layers="both.depth", **options).table
    on_rgb = compare(model, (rgb, depth), target_layers="rgb", **options).table
    for name in metrics:
        assert found[name].tolist() == pytest.approx(expected[name].tolist(), rel=1e-5)
        assert found[name].tolist() != pytest.approx(on_rgb[name].tolist(), rel=1e-3)
    with pytest.raises(InputError, match="the methods explain different inputs"):
        compare(model, (rgb, depth), target_layers=["rgb", "depth"], **options)


def test_a_model_with_one_input_runs_no_further_pass():
    model, passes = text_and_image(), []
    single = build(lambda m, x: m.fc(m.image(x).mean((2, 3))), image=stage(3), fc=nn.Linear(6, 5)).double()
    for one in (model, single):
        one.register_forward_hook(lambda *_: passes.append(1))
    GradCAM(single, "image")(RGB, 1)
    assert len(passes) == 1
    cam = GradCAM(model, "image")
    cam((TEXT, RGB), 1)
    assert len(passes) == 3
    cam((TEXT, RGB), 1)
    assert len(passes) == 4
    two = rgb_and_depth()
    two.fc.register_forward_hook(lambda *_: passes.append(1))
    depth = GradCAM(two, image_input=1).explain((RGB, DEPTH), 1)
    assert depth.heatmaps.shape == (2, 20, 20)
    assert depth.layers == ("joint",)

"""Smooth and TestTime: means over noisy, mirrored and brighter images, of any method."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from cases import MINI, Sample, assert_same, stack
from comparisons import FEWER, home, layers_of
from models import Restless, build
from models import images as draw_images
from networks import blocks, signal
from oracles import ORACLES
from representatives import each
from test_score_cam import Counted
from traces import unchanged

from gradcam_kit import (
    METHODS,
    EigenCAM,
    EigenSmooth,
    GradCAM,
    Smooth,
    TestTime,
    WinsorCAM,
)
from gradcam_kit.errors import InputError, NonFiniteError, OptionError, ShapeError
from gradcam_kit.methods.smoothing import check_cam

FACTORS = (0.9, 1.0, 1.1)


LAYERS = ["block1.0", "block1", "block2"]


WRAPPERS = {"smooth": partial(Smooth, samples=3), "test-time": partial(TestTime, brightness=(0.9, 1.0))}


EACH = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def draws(size, samples=3, std=0.3, seed=0, channels=3):
    return std * torch.randn(samples, channels, *size, generator=torch.Generator().manual_seed(seed)).double()


def views(wrapper, images):
    """What the wrapper takes the mean over, and whether it is mirrored."""
    if isinstance(wrapper, Smooth):
        noise = draws(images.shape[2:], wrapper.samples, wrapper.std, wrapper.seed, images.shape[1])
        return [(images + one, False) for one in noise]
    return [
        (factor * (images.flip(-1) if mirrored else images), mirrored)
        for factor in wrapper.brightness
        for mirrored in (False, True)
    ]


def mean_of_calls(wrapper, images, targets, layer):
    """The mean of separate calls of the method."""
    maps = [(wrapper.cam.explain(view, targets).saliency[layer], mirrored) for view, mirrored in views(wrapper, images)]
    return sum(one.flip(-1) if mirrored else one for one, mirrored in maps) / len(maps)


def smooth(sample: Sample, oracle, **options):
    noise = draws(sample.image.shape[1:], **options)
    return ref.smooth([oracle(sample.at(sample.image + one)) for one in noise])


def flip_mean(sample: Sample, oracle):
    maps, axes = [], []
    for factor in FACTORS:
        for mirrored in (False, True):
            image = sample.image.flip(-1) if mirrored else sample.image
            maps.append(oracle(sample.at(factor * image)))
            axes.append(-1 if mirrored else None)
    return ref.flip_mean(maps, axes)


def winsor_importance(model, layer, images):
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[-1]) or a[-1].clone())
    with torch.enable_grad():
        score = model(images)[:, 0].sum()
    handle.remove()
    (gradients,) = torch.autograd.grad(score, kept[0])
    return [ref.winsor_importance(ref.grad_cam_weights(one)) for one in gradients]


def assert_winsorized(found, model, all_views):
    """The heatmaps are those of the saliency and of the mean importance over the views."""
    importance = [np.mean([winsor_importance(model, layer, view) for view in all_views], axis=0) for layer in LAYERS]
    for i in range(len(found.heatmaps)):
        shares = ref.winsorize([float(own[i]) for own in importance], 100.0)
        assert len({0.0, 0.1, 1.0, *shares}) > 3  # one of them depends on all numbers
        maps = [ref.upsample(ref.normalize_minmax(ref.relu(found.saliency[layer][i])), (16, 16)) for layer in LAYERS]
        expected = sum(share * one for share, one in zip(shares, maps, strict=True))
        assert_same(found.heatmaps[i], ref.normalize_minmax(expected), 1e-6)


@pytest.mark.parametrize("name", ["grad-cam", "hires-cam", "grad-cam++", "layer-cam", "eigen-cam", "score-cam"])
@pytest.mark.parametrize("case", MINI, ids=lambda case: case.name)
def test_equal_the_transcriptions(name, case):
    cam = METHODS[name](case.model, case.layer)
    found = Smooth(cam, samples=2, std=0.4, seed=3).explain(case.images, case.targets)
    oracle = partial(smooth, oracle=ORACLES[name], samples=2, std=0.4, seed=3)
    assert_same(found.saliency[case.layer], stack(case, oracle))
    found = TestTime(cam).explain(case.images, case.targets)
    assert_same(found.saliency[case.layer], stack(case, partial(flip_mean, oracle=ORACLES[name])))


@EACH
@pytest.mark.parametrize("name", each())
def test_works_with_every_method(wrap, name):
    model, layer = home(name), layers_of(name)[-1]
    size = (16, 16) if hasattr(model, "patch") else (8, 7)
    images, targets = draw_images(2, size=size).double(), torch.tensor([1, 3])
    wrapper = wrap(METHODS[name](model, layer, **FEWER.get(name, {})))
    found = wrapper.explain(images, targets)
    (layer,) = found.saliency
    assert_same(found.saliency[layer], mean_of_calls(wrapper, images, targets, layer))
    assert found.heatmaps.shape == (2, *size)
    assert found.heatmaps.dtype == torch.float32


@EACH
def test_signals_and_several_targets(wrap):
    images, targets = draw_images(3, size=(21,)).double(), torch.tensor([[0, 1], [2, 3], [4, 0]])
    wrapper = wrap(GradCAM(signal(), "block1"))
    found = wrapper.explain(images, targets)
    assert found.heatmaps.shape == (3, 2, 21)
    assert_same(found.saliency["block1"], mean_of_calls(wrapper, images, targets, "block1"))
    assert torch.equal(found.targets, targets)


@EACH
def test_heatmaps_follow_from_the_mean(wrap):
    images = draw_images(2).double()
    wrapper = wrap(GradCAM(blocks(), ["block1", "block2"], fusion="max", normalize="max"))
    found = wrapper.explain(images, 2)
    for i in range(2):
        maps = [found.saliency["block1"][i], found.saliency["block2"][i]]
        assert_same(found.heatmaps[i], ref.heatmap(maps, (16, 16), "max", "max"), 1e-6)
    assert torch.equal(wrapper(images, 2), found.heatmaps)


@EACH
def test_scores_and_output_are_those_of_the_images(wrap):
    images = draw_images(3).double()
    cam = GradCAM(blocks())
    found, clean = wrap(cam).explain(images), cam.explain(images)
    assert torch.equal(found.scores, clean.scores)
    assert torch.equal(found.output, clean.output)
    assert torch.equal(found.targets, clean.targets)
    assert found.layers == clean.layers == ("block2",)
    assert not torch.equal(found.saliency["block2"], clean.saliency["block2"])


@EACH
@pytest.mark.parametrize("targets", [None, 3, [0, 4, 2]], ids=str)
def test_batch_equals_one_by_one(wrap, targets):
    images, wrapper = draw_images(3).double(), wrap(GradCAM(blocks(), "block1"))
    whole = wrapper.explain(images, targets)
    for i in range(3):
        alone = wrapper.explain(images[i : i + 1], targets[i : i + 1] if isinstance(targets, list) else targets)
        assert_same(whole.saliency["block1"][i], alone.saliency["block1"][0], 1e-12)
        assert_same(whole.heatmaps[i], alone.heatmaps[0], 1e-6)


@pytest.mark.parametrize(("batch_size", "passes"), [(1, [2] * 5), (5, [4, 4, 2]), (64, [10])])
def test_as_many_views_in_one_pass_as_fit(batch_size, passes):
    images, model = draw_images(2).double(), Counted(blocks()).eval()
    wrapper = Smooth(GradCAM(model, "inner.block1", batch_size=batch_size), samples=5)
    found = wrapper.explain(images, 1).saliency["inner.block1"]
    assert model.rows == [2, *passes]
    assert_same(found, Smooth(GradCAM(blocks(), "block1"), samples=5).explain(images, 1).saliency["block1"], 1e-12)


def test_seeds():
    images, cam = draw_images(2).double(), GradCAM(blocks(), "block1")
    state = torch.get_rng_state()
    first, again, other = (Smooth(cam, samples=2, seed=seed).explain(images).saliency["block1"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3 * first.abs().max()
    assert torch.equal(torch.get_rng_state(), state)


def test_without_noise_it_is_the_method():
    images, cam = draw_images(2).double(), GradCAM(blocks(), "block1")
    expected = cam.explain(images).saliency["block1"]
    assert_same(Smooth(cam, std=0.0).explain(images).saliency["block1"], expected)


def test_importance_of_layers_is_a_mean_too():
    images, model = draw_images(2).double(), blocks()
    wrapper = Smooth(WinsorCAM(model, LAYERS), samples=3, std=2.0)
    assert_winsorized(wrapper.explain(images, 0), model, [view for view, _ in views(wrapper, images)])


@EACH
def test_leaves_no_trace(wrap):
    images = draw_images(2)
    model = Restless().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with unchanged(model, images):
        wrap(GradCAM(model, "stage2"))(images)
    with unchanged(model, images), pytest.raises(NonFiniteError):
        wrap(GradCAM(model, "stage2"))(images * torch.inf)
    calls = []

    def fails_later(logits):
        calls.append(len(logits))
        if len(calls) > 2:
            raise RuntimeError("third view")
        return logits[:, 0]

    with unchanged(model, images), pytest.raises(RuntimeError, match="third view"):
        wrap(GradCAM(model, "stage2"))(images, fails_later)


@EACH
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(wrap, mode):
    images = draw_images(2).double()
    wrapper = wrap(GradCAM(blocks(), "block1"))
    expected = wrapper(images)
    assert not expected.requires_grad
    with mode():
        assert torch.equal(wrapper(images.clone()), expected)


@EACH
def test_inputs_as_in_calling_the_method(wrap):
    model = build(lambda m, x, y=None: m.inner(x) if y is None else m.inner(x) * y, inner=blocks()).double()
    images, factor = draw_images(3).double(), torch.tensor([[1.0], [-1.0], [2.0]]).double()
    wrapper = wrap(GradCAM(model, "inner.block1"))
    expected = wrapper.explain(images, 0).saliency["inner.block1"] * factor[:, :, None]
    for found in (wrapper.explain((images, factor), 0), wrapper.explain(images, 0, y=factor)):
        assert_same(found.saliency["inner.block1"], expected)
    assert_same(wrapper.explain({"x": images, "y": factor}, 0).saliency["inner.block1"], expected)


def test_names_of_inputs_may_be_those_of_arguments():
    model = build(lambda m, images, targets: m.inner(images) + targets, inner=blocks()).double()
    images = draw_images(2).double()
    found = Smooth(GradCAM(model, "inner.block1")).explain({"images": images, "targets": torch.zeros(2, 5).double()}, 1)
    expected = Smooth(GradCAM(blocks(), "block1")).explain(images, 1)
    assert_same(found.saliency["inner.block1"], expected.saliency["block1"])


@EACH
def test_class_agnostic_maps_need_no_readable_output(wrap):
    model = build(lambda m, x: dict.fromkeys("ab", m.inner(x)), inner=blocks()).double()
    images = draw_images(2).double()
    found = wrap(EigenCAM(model, "inner.block1")).explain(images)
    assert found.scores is None
    expected = wrap(EigenCAM(blocks(), "block1")).explain(images)
    assert_same(found.saliency["inner.block1"], expected.saliency["block1"])


@EACH
def test_empty_batch_and_wrong_targets(wrap):
    wrapper = wrap(GradCAM(blocks(), "block1"))
    assert wrapper(torch.zeros(0, 3, 16, 16).double()).shape == (0, 16, 16)
    with pytest.raises(ShapeError, match="2 targets for 3 images"):
        wrapper(draw_images(3).double(), [0, 1])


def test_automatic_layer_and_its_cache():
    cam = GradCAM(blocks())
    assert Smooth(cam, samples=2).explain(draw_images(2).double()).layers == ("block2",)
    assert list(cam.chosen_layers) == [(16, 16)]


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": 2.0}, {"std": -0.1}, {"std": float("nan")}], ids=str)
def test_wrong_options(options):
    with pytest.raises((OptionError, TypeError), match=next(iter(options))):
        Smooth(GradCAM(blocks()), **options)


def test_no_brightness():
    with pytest.raises(OptionError, match="brightness"):
        TestTime(GradCAM(blocks()), brightness=())


def test_only_methods_are_wrapped():
    with pytest.raises(InputError, match="Smooth got a Blocks; expected a CAM object"):
        check_cam("Smooth", blocks())


def test_wrappers_are_no_methods():
    assert not {Smooth, TestTime, EigenSmooth} & set(METHODS.values())

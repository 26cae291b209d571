"""Smooth, TestTime and EigenSmooth: means over views of the images, and components instead of sums."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reference as ref
import torch
from cases import MINI, SMALL, Sample, assert_same, stack
from comparisons import home, layers_of
from models import Restless, build
from models import images as draw_images
from networks import blocks, signal
from oracles import ORACLES
from test_score_cam import Counted
from torch import nn
from traces import unchanged

from gradcam_kit import (
    METHODS,
    EigenCAM,
    EigenSmooth,
    FinerCAM,
    GradCAM,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    Smooth,
    TestTime,
    WinsorCAM,
    XGradCAM,
    explain_all,
)
from gradcam_kit.errors import InputError, NonFiniteError, OptionError, ShapeError
from gradcam_kit.methods.smoothing import check_cam
from gradcam_kit.targets import SegmentationTarget, TopK

FACTORS = (0.9, 1.0, 1.1)
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
@pytest.mark.parametrize("name", METHODS)
def test_works_with_every_method(wrap, name):
    model, layer = home(name), layers_of(name)[-1]
    size = (16, 16) if hasattr(model, "patch") else (8, 7)
    images, targets = draw_images(2, size=size).double(), torch.tensor([1, 3])
    wrapper = wrap(METHODS[name](model, layer))
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


def test_class_is_that_of_the_images_as_they_are():
    images = torch.zeros(2, 3, 2, 8, dtype=torch.float64)
    images[0, :, :, :4] = 1.0  # mirrored it is of the other class
    images[1, :, :, 4:] = 1.0
    model = build(
        lambda m, x: m.fc(m.layer(x).flatten(1)), layer=nn.Conv2d(3, 2, 1), fc=nn.Linear(2 * 2 * 8, 2)
    ).double()
    with torch.no_grad():
        model.layer.weight.fill_(1.0)
        model.layer.bias.zero_()
        sides = torch.zeros(2, 2, 2, 8)
        sides[0, ..., :4], sides[1, ..., 4:] = 1.0, 1.0
        model.fc.weight.copy_(sides.flatten(1))
        model.fc.bias.zero_()
    cam = HiResCAM(model, "layer")
    assert cam.explain(images).targets.tolist() == [0, 1]
    assert cam.explain(images.flip(-1)).targets.tolist() == [1, 0]
    found = TestTime(cam).explain(images)
    assert found.targets.tolist() == [0, 1]
    # the mirror image has no light where its class looks, so half of the views count
    assert_same(found.saliency["layer"], 0.5 * cam.explain(images).saliency["layer"])


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


@EACH
def test_callable_without_select_gets_one_view_at_a_time(wrap):
    images, sizes = draw_images(3).double(), []

    def target(logits):
        sizes.append(len(logits))
        return torch.stack([logits[i, i] for i in range(3)])  # each image has a class of its own

    wrapper = wrap(GradCAM(blocks(), "block1"))
    found = wrapper.explain(images, target)
    assert set(sizes) == {3}
    assert found.targets is None
    assert_same(found.saliency["block1"], wrapper.explain(images, [0, 1, 2]).saliency["block1"])


@EACH
def test_callable_with_select_shares_passes(wrap):
    class Selected:
        def __init__(self, classes):
            self.classes_of = classes

        def __call__(self, logits):
            return logits.gather(1, self.classes_of[:, None])[:, 0]

        def select(self, index):
            return Selected(self.classes_of[index])

    images, model = draw_images(3).double(), Counted(blocks()).eval()
    found = wrap(GradCAM(model, "inner.block1")).explain(images, Selected(torch.tensor([0, 1, 2])))
    assert len(model.rows) == 2
    expected = wrap(GradCAM(blocks(), "block1")).explain(images, [0, 1, 2])
    assert_same(found.saliency["inner.block1"], expected.saliency["block1"])


def test_targets_are_settled_by_the_images_as_they_are():
    images, model = draw_images(3).double(), blocks()
    wrapper = Smooth(GradCAM(model, "block1"), samples=3, std=3.0)
    largest = model(images).detach().topk(2, dim=1).indices
    noisy = [model(view).detach().topk(2, dim=1).indices for view, _ in views(wrapper, images)]
    assert any(not torch.equal(one.sort().values, largest.sort().values) for one in noisy)
    fixed = [mean_of_calls(wrapper, images, largest[:, j], "block1") for j in range(2)]
    assert_same(wrapper.explain(images, TopK(2)).saliency["block1"], fixed[0] + fixed[1])


def test_finer_references_are_settled_by_the_images_as_they_are():
    images, model = draw_images(2).double(), blocks()
    found = Smooth(FinerCAM(model, "block1"), samples=3, std=3.0).explain(images, 1).saliency["block1"]
    logits = model(images).detach()
    expected = []
    for i in range(2):
        references = ref.finer_references(logits[i], 1)

        def finer(output, references=references):
            shares = output.softmax(1)[:, references]
            return (shares * (output[:, [1]] - output[:, references])).sum(1) / shares.sum(1)

        wrapper = Smooth(GradCAM(model, "block1"), samples=3, std=3.0)
        expected.append(wrapper.explain(images[i : i + 1], finer).saliency["block1"][0])
    assert_same(found, torch.stack(expected))


def test_region_of_a_segmentation_is_that_of_the_images():
    model = build(
        lambda m, x: m.head(m.layer(x)), layer=nn.Conv2d(3, 4, 3, padding=1), head=nn.Conv2d(4, 3, 1)
    ).double()
    images = draw_images(2, size=(6, 5)).double()
    region = model(images).detach().argmax(1) == 1
    wrapper = Smooth(GradCAM(model, "layer"), samples=3, std=2.0)
    found = wrapper.explain(images, SegmentationTarget(None, 1))
    assert_same(found.saliency["layer"], wrapper.explain(images, SegmentationTarget(region, 1)).saliency["layer"])


def test_importance_of_layers_is_a_mean_too():
    layers, images = ["block1.0", "block1", "block2"], draw_images(2).double()
    wrapper = Smooth(WinsorCAM(blocks(), layers), samples=3, std=2.0)
    found = wrapper.explain(images, 2)
    importance = [
        np.mean([winsor_importance(wrapper.cam.model, layer, view) for view, _ in views(wrapper, images)], axis=0)
        for layer in layers
    ]
    for i in range(2):
        shares = ref.winsorize([float(own[i]) for own in importance], 100.0)
        assert len({0.0, 0.1, 1.0, *shares}) > 3  # one of them depends on all numbers
        maps = [ref.upsample(ref.normalize_minmax(ref.relu(found.saliency[layer][i])), (16, 16)) for layer in layers]
        expected = sum(share * one for share, one in zip(shares, maps, strict=True))
        assert_same(found.heatmaps[i], ref.normalize_minmax(expected), 1e-6)


def winsor_importance(model, layer, images):
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[-1]) or a[-1].clone())
    with torch.enable_grad():
        score = model(images)[:, 2].sum()
    handle.remove()
    (gradients,) = torch.autograd.grad(score, kept[0])
    return [ref.winsor_importance(ref.grad_cam_weights(one)) for one in gradients]


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


# Components.


def eigen_smooth(sample: Sample, weights, center: bool = False):
    return ref.eigen_smooth(sample.activations, weights(sample), center)


WEIGHTS = {
    "grad-cam": lambda sample: ref.grad_cam_weights(sample.gradients),
    "hires-cam": lambda sample: sample.gradients,
    "layer-cam": lambda sample: sample.gradients.clamp(min=0),
}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("case", [SMALL[0], SMALL[3], SMALL[5], SMALL[8]], ids=lambda case: case.name)
def test_components_equal_the_transcription(case, name, center):
    found = EigenSmooth(METHODS[name](case.model, case.layer), center=center).explain(case.images, case.targets)
    oracle = partial(eigen_smooth, weights=WEIGHTS[name], center=center)
    assert_same(found.saliency[case.layer], stack(case, oracle), 1e-7)


def test_components_take_over_the_settings():
    images = draw_images(2).double()
    cam = LayerCAM(blocks(), ["block1", "block2"], gamma=3.0, normalize="max", batch_size=5)
    found = EigenSmooth(cam).explain(images, 2)
    for i in range(2):
        maps = [found.saliency["block1"][i], found.saliency["block2"][i]]
        expected = ref.layer_cam_heatmap(maps, (16, 16), [True, False], 3.0, "max")
        assert_same(found.heatmaps[i], expected, 1e-6)
    finer = EigenSmooth(FinerCAM(blocks(), "block1")).explain(images, 1)
    assert_same(finer.scores, FinerCAM(blocks(), "block1").explain(images, 1).scores)


def test_components_share_passes_and_are_smoothed():
    images, model = draw_images(2).double(), Counted(blocks()).eval()
    cams = [XGradCAM(model, "inner.block1"), EigenSmooth(XGradCAM(model, "inner.block1"))]
    plain, component = explain_all(cams, images, 1)
    assert model.rows == [2]
    assert (plain - component).abs().max() > 0.01
    wrapper = Smooth(EigenSmooth(XGradCAM(blocks(), "block1")), samples=2)
    found = wrapper.explain(images, 1).saliency["block1"]
    assert_same(found, mean_of_calls(wrapper, images, 1, "block1"))


@pytest.mark.parametrize("cam", [ScoreCAM, EigenCAM], ids=lambda cam: cam.name)
def test_components_need_weights(cam):
    with pytest.raises(InputError, match=f"{cam.__name__} is no sum of weighted channels"):
        EigenSmooth(cam(blocks()))

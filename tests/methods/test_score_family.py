"""SS-CAM, IS-CAM, Group-CAM and SESS beyond their transcriptions: what they share, ladders, noise and blur."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference as ref
import torch
from cases import MINI, assert_same
from models import images as draw_images
from networks import blocks
from test_score_cam import Counted, with_dead_channels

from gradcam_kit import ISCAM, METHODS, SESS, SSCAM, GroupCAM, ScoreCAM
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import gaussian_blur
from gradcam_kit.methods.is_cam import ladder_factors
from gradcam_kit.targets import ClassProbability

FAMILY = {"ss-cam": {"samples": 3}, "is-cam": {"samples": 3}, "group-cam": {"groups": 3}, "sess": {"scales": 3}}


EACH = pytest.mark.parametrize("name", FAMILY)


def saliency(name, model, images, targets=None, layer="block1", **options):
    return METHODS[name](model, layer, **{**FAMILY[name], **options}).explain(images, targets).saliency[layer]


def rescored(cam, rescore_probability):
    """A method that gets other probabilities."""

    class Rescored(cam):
        def saliencies(self, layer):
            return super().saliencies(replace(layer, rescore_probability=rescore_probability))

    return Rescored


@EACH
@pytest.mark.parametrize("size", [(9, 8), (21,)], ids=["picture", "signal"])
def test_batch_size_changes_nothing(name, size):
    model, images = blocks(len(size)), draw_images(3, size=size).double()
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    expected = saliency(name, model, images, targets)
    for batch_size in (1, 4, 7):
        assert_same(saliency(name, model, images, targets, batch_size=batch_size), expected, 1e-11)


@EACH
def test_seeds_and_their_traces(name):
    model, images = blocks(), draw_images(2).double()
    state = torch.get_rng_state()
    first, again = (saliency(name, model, images, 2) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    if name in ("ss-cam", "group-cam"):
        other = saliency(name, model, images, 2, seed=5)
        assert (other - first).abs().max() > 1e-4 * first.abs().max()


@EACH
def test_constant_channels_stay_finite(name):
    found = saliency(name, with_dead_channels(0, 3, 5), draw_images(2).double(), [0, 2])
    assert torch.isfinite(found).all()
    assert found.any()


@pytest.mark.parametrize("name", ["ss-cam", "is-cam"])
@pytest.mark.parametrize("weighting", ["softmax", "probability", "relu"])
def test_weightings_with_constant_channels(name, weighting):
    model, images = with_dead_channels(2, 4), draw_images(2, size=(6, 5)).double()
    found = saliency(name, model, images, [0, 2], weighting=weighting)
    noise = 2.0 * torch.randn(3, 1, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    for image, target, one in zip(images, [0, 2], found, strict=True):

        def score(masked, target=target):
            logits = model(torch.from_numpy(masked)[None])[0].detach()
            return float(logits.softmax(0)[target] if weighting == "probability" else logits[target])

        activations = model.block1(image[None])[0].detach()
        if name == "ss-cam":
            expected = ref.ss_cam(activations, image, score, noise, weighting)
        else:
            expected = ref.is_cam(activations, image, score, ref.is_cam_factors(3), weighting)
        assert_same(one, expected)


@pytest.mark.parametrize("name", ["ss-cam", "is-cam"])
def test_constant_channels_are_scored_once_per_change(name):
    for dead, rows in (((), 6), ((2,), 6), ((0, 3, 5), 4)):
        model = Counted(with_dead_channels(*dead)).eval()
        saliency(name, model, draw_images(2).double(), 0, layer="inner.block1")
        assert model.rows == [2, *[2 * rows] * 3]


def test_without_noise_and_with_one_step_it_is_score_cam():
    images = draw_images(2).double()
    expected = ScoreCAM(blocks(), "block1").explain(images, 1).saliency["block1"]
    for cam in (SSCAM(blocks(), "block1", std=0.0, samples=2), ISCAM(blocks(), "block1", samples=1)):
        assert_same(cam.explain(images, 1).saliency["block1"], expected)


def test_ladders():
    assert ladder_factors(4) == [0.25, 0.5, 0.75, 1.0]
    assert ladder_factors(10, "printed")[-1] == 4.5
    assert ladder_factors(10, "cumulative")[-1] == 5.5
    for ladder in ("linear", "printed", "cumulative"):
        assert ladder_factors(7, ladder) == pytest.approx(ref.is_cam_factors(7, ladder))


def test_defaults_are_documented_ones():
    assert (SSCAM(blocks()).samples, SSCAM(blocks()).std) == (35, 2.0)
    assert (ISCAM(blocks()).samples, ISCAM(blocks()).ladder) == (10, "linear")
    assert GroupCAM(blocks()).groups == 32
    assert (SESS(blocks()).scales, SESS(blocks()).growth, SESS(blocks()).pool) == (12, 2 / 7, "mean")


@pytest.mark.parametrize(
    ("cam", "options"),
    [
        (SSCAM, {"samples": 0}),
        (SSCAM, {"std": -1.0}),
        (SSCAM, {"std": float("nan")}),
        (ISCAM, {"samples": True}),
        (GroupCAM, {"groups": 0}),
        (SESS, {"scales": 0}),
        (SESS, {"growth": 0.0}),
    ],
)
def test_wrong_options(cam, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        cam(blocks(), **options)


@pytest.mark.parametrize("size", [(1,), (2,), (7,), (30, 1), (9, 8), (3, 4, 5)], ids=str)
@pytest.mark.parametrize(("kernel", "sigma"), [(3, 1.0), (11, 5.0), (51, 50.0)])
def test_blur_equals_the_transcription(size, kernel, sigma):
    images = draw_images(2, size=size).double()
    found = gaussian_blur(images, kernel, sigma)
    assert found.is_contiguous()
    for one, image in zip(found, images, strict=True):
        assert_same(one, ref.gaussian_blur(image, kernel, sigma))


def test_blur_of_a_constant_and_of_a_point():
    assert_same(gaussian_blur(torch.full((1, 1, 5, 40), 2.0).double(), 51, 50.0), np.full((1, 1, 5, 40), 2.0))
    point = torch.zeros(1, 1, 9)
    point[..., 4] = 1
    weight = np.exp(-1 / 2)
    expected = np.array([weight, 1, weight]) / (1 + 2 * weight)
    assert_same(gaussian_blur(point, 3, 1.0)[0, 0, 3:6], expected, 1e-6)


@pytest.mark.parametrize("name", ["sess", "group-cam"])
def test_callables_count_by_their_score(name):
    images = draw_images(2).double()
    by_class = saliency(name, blocks(), images, ClassProbability(2))
    by_callable = saliency(name, blocks(), images, lambda logits: logits.softmax(1)[:, 2])
    assert_same(by_callable, by_class)


def test_small_images():
    for case in MINI[1:]:
        for name in FAMILY:
            found = saliency(name, case.model, case.images, case.targets, layer=case.layer)
            assert torch.isfinite(found).all()

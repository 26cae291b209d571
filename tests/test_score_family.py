"""SS-CAM, IS-CAM, Group-CAM and SESS beyond their transcriptions: counted passes, groups, windows, blur."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import reference as ref
import torch
from cases import MINI, SMALL, assert_same, probability, stack
from models import images as draw_images
from networks import blocks
from test_score_cam import Counted, with_dead_channels

from gradcam_kit import ISCAM, METHODS, SESS, SSCAM, GradCAM, GroupCAM, ScoreCAM
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import gaussian_blur
from gradcam_kit.methods.group_cam import group_channels
from gradcam_kit.methods.is_cam import ladder_factors
from gradcam_kit.methods.sess import paste_windows, windows
from gradcam_kit.targets import ClassLogit, ClassProbability

FAMILY = {"ss-cam": {"samples": 3}, "is-cam": {"samples": 3}, "group-cam": {"groups": 3}, "sess": {"scales": 3}}
EACH = pytest.mark.parametrize("name", FAMILY)


def saliency(name, model, images, targets=None, layer="block1", **options):
    return METHODS[name](model, layer, **{**FAMILY[name], **options}).explain(images, targets).saliency[layer]


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


# Groups of channels.


def planted(seed: int = 0):
    """Twelve noisy channels from three very different maps, with scales and offsets of their own."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(2, 3, 5, 6, generator=generator).double()
    member = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2, 1])
    scale = torch.rand(2, 12, 1, 1, generator=generator) + 0.5
    noise = 0.05 * torch.randn(2, 12, 5, 6, generator=generator)
    return scale * (sources[:, member] + noise) + 10 * scale, member


def partition(labels):
    """Which pairs of channels are together, whatever the groups are called."""
    return labels[..., None] == labels[..., None, :]


def slow_groups(activations, groups, seed):
    """K-means of one sample by loops: centers as far apart as they come, ten rounds."""
    rows = []
    for channel in ref.float64(activations):
        centered = channel.ravel() - channel.mean()
        rows.append(centered / np.linalg.norm(centered) if channel.max() > channel.min() else 0 * centered)
    start = torch.randn(len(rows[0]), generator=torch.Generator().manual_seed(seed)).double().numpy()
    centers = [max(rows, key=lambda row: row @ start)]
    while len(centers) < min(groups, len(rows)):
        centers.append(min(rows, key=lambda row: max(row @ center for center in centers)))
    for _ in range(11):
        labels = [int(np.argmax([row @ center for center in centers])) for row in rows]
        for g in range(len(centers)):
            members = [row for row, label in zip(rows, labels, strict=True) if label == g]
            if members:
                centers[g] = sum(members) / np.linalg.norm(sum(members))
    return torch.tensor(labels)


@pytest.mark.parametrize("seed", range(3))
def test_similar_channels_are_grouped(seed):
    maps, member = planted()
    found = group_channels(maps, 3, seed)
    assert torch.equal(partition(found), partition(member).expand(2, -1, -1))


@pytest.mark.parametrize(
    ("channels", "groups", "seed"),
    [(20, 1, 0), (20, 2, 0), (90, 4, 1), (90, 7, 2), (20, 20, 0), (20, 99, 0)],
)
def test_groups_equal_slow_k_means(channels, groups, seed):
    maps = torch.randn(3, channels, 4, 5, generator=torch.Generator().manual_seed(4)).double()
    found = group_channels(maps, groups, seed)
    for one, labels in zip(maps, found, strict=True):
        assert torch.equal(partition(labels), partition(slow_groups(one, groups, seed)))
    assert found.max() + 1 == min(groups, channels)
    if groups >= channels:
        assert all(len(set(labels.tolist())) == channels for labels in found)


def test_groups_do_not_depend_on_order_scale_batch():
    maps = torch.randn(3, 20, 4, 5, generator=torch.Generator().manual_seed(4)).double()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    found = group_channels(maps, 5, 0)
    assert torch.equal(group_channels(maps[:, order], 5, 0), found[:, order])
    assert torch.equal(group_channels(3 * maps + 2, 5, 0), found)
    assert torch.equal(torch.cat([group_channels(one[None], 5, 0) for one in maps]), found)
    assert not torch.equal(partition(group_channels(maps, 5, 3)), partition(found))


def test_constant_channels_start_no_group():
    maps, member = planted()
    dead = (0.37 * torch.arange(1, 10).double()).view(1, 9, 1, 1).expand(2, 9, 5, 6)
    found = group_channels(torch.cat([dead, maps], 1), 3, 0)
    assert torch.equal(partition(found[:, 9:]), partition(member).expand(2, -1, -1))
    assert not found[:, :9].any()
    assert not group_channels(dead, 3, 0).any()


def permuted(model, order):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (model.block1[0].weight, model.block1[0].bias):
            tensor.copy_(tensor[order])
        model.block2[0].weight.copy_(model.block2[0].weight[:, order])
    return model


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_cam_of_permuted_channels(groups):
    images, model = draw_images(2).double(), blocks(channels=6)
    expected = saliency("group-cam", model, images, [0, 2], groups=groups)
    changed = permuted(model, torch.tensor([3, 0, 5, 1, 4, 2]))
    assert_same(saliency("group-cam", changed, images, [0, 2], groups=groups), expected)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_passes_of_group_cam(batch_size):
    model = Counted(blocks()).eval()
    saliency("group-cam", model, draw_images(2).double(), 0, layer="inner.block1", batch_size=batch_size)
    assert sum(model.rows) == 2 + 2 + 2 * 3
    assert max(model.rows) == max(2, min(batch_size, 6))


def rescored(cam, rescore_probability):
    """A method that gets other probabilities."""

    class Rescored(cam):
        def saliencies(self, layer):
            return super().saliencies(replace(layer, rescore_probability=rescore_probability))

    return Rescored


def test_group_that_shows_nothing_counts_nothing():
    model, calls = blocks(), []
    with torch.no_grad():
        model.block1[0].weight[:] = 0
        model.block1[0].bias[:] = 1.0
    images = draw_images(2).double()
    assert not saliency("group-cam", model, images, 0).any()
    rounding = rescored(GroupCAM, lambda rows, index: calls.append(1) or torch.full((len(rows),), 1e-9 * len(calls)))
    assert not rounding(model, "block1").explain(images, 0).saliency["block1"].any()
    assert len(calls) == 2


def test_group_cam_of_a_probability_uses_its_gradients():
    def alone(sample):
        blurred = ref.gaussian_blur(sample.image, 51, 50.0)
        groups = [[k] for k in range(6)]
        return ref.group_cam(sample.activations, sample.gradients, sample.image, blurred, sample.rescore, groups)

    case = SMALL[6]
    found = GroupCAM(case.model, case.layer).explain(case.images, ClassProbability(case.targets))
    assert_same(found.saliency[case.layer], stack(case, alone, probability))


# Blur.


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


# Windows.


def test_windows_of_the_released_code():
    found = windows((224, 224), 12, 2 / 7)
    assert len(found) == 122
    sides = sorted({window[0].stop - window[0].start for window in found}, reverse=True)
    assert sides == [224, 174, 143, 121, 105, 92, 83, 75, 68, 63, 58, 54]
    assert all(rows.stop - rows.start == columns.stop - columns.start for rows, columns in found)


@pytest.mark.parametrize("size", [(1,), (3,), (17,), (16, 10), (5, 6, 4)], ids=str)
@pytest.mark.parametrize("scales", [1, 2, 12])
def test_windows_cover_everything_and_stay_inside(size, scales):
    scale = torch.zeros(size)
    for window in windows(size, scales, 2 / 7):
        assert all(0 <= one.start < one.stop <= length for one, length in zip(window, size, strict=True))
        scale[window] += 1
    assert scale.min() >= scales


def test_pasted_by_hand():
    where = [(slice(0, 4),), (slice(0, 2),), (slice(2, 4),), (slice(1, 3),)]
    maps = torch.tensor([[[1.0, 1.0]], [[3.0, 3.0]], [[0.0, 0.5]], [[2.0, 2.0]]])
    assert paste_windows(maps, where, (4,)).tolist() == [[2.0, 2.0, 1.0, 0.75]]
    assert paste_windows(maps, where, (4,), "max").tolist() == [[3.0, 3.0, 2.0, 1.0]]


def test_one_scale_is_blurred_grad_cam():
    images = draw_images(2).double()
    coarse = GradCAM(blocks(), "block2").explain(images, 1).saliency["block2"]
    expected = [
        ref.gaussian_blur(ref.upsample(ref.normalize_minmax(ref.relu(one)), (16, 16))[None], 11, 5.0)[0]
        for one in coarse
    ]
    assert_same(saliency("sess", blocks(), images, 1, layer="block2", scales=1), np.stack(expected))


def test_pools_differ_and_targets_are_their_own():
    images = draw_images(2).double()
    mean = saliency("sess", blocks(), images, torch.tensor([[0, 1], [2, 3]]))
    largest = saliency("sess", blocks(), images, torch.tensor([[0, 1], [2, 3]]), pool="max")
    assert (largest >= mean - 1e-12).all()
    assert (largest - mean).max() > 0.01
    assert (mean[:, 0] - mean[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["sess", "group-cam"])
def test_callables_count_by_their_score(name):
    images = draw_images(2).double()
    by_class = saliency(name, blocks(), images, ClassProbability(2))
    by_callable = saliency(name, blocks(), images, lambda logits: logits.softmax(1)[:, 2])
    assert_same(by_callable, by_class)


def test_sess_of_negative_scores_is_empty():
    found = SESS(blocks(), "block1", scales=2).explain(draw_images(2).double(), lambda logits: logits[:, 0] - 1e3)
    assert found.is_empty.tolist() == [True, True]
    assert not found.heatmaps.any()


def test_sess_counts_scores_from_zero():
    images, values = draw_images(1).double(), torch.tensor([-0.5, 2.0, 1.0, -3.0, 0.5]).double()
    found, expected = (
        rescored(SESS, lambda rows, _, own=own: own[: len(rows)])(blocks(), "block1", scales=2).explain(images, 0)
        for own in (values, values.clamp(min=0))
    )
    assert_same(found.saliency["block1"], expected.saliency["block1"])


def test_sess_runs_many_windows_at_once():
    model = Counted(blocks()).eval()
    saliency("sess", model, draw_images(2).double(), ClassLogit(0), layer="inner.block1", batch_size=6)
    count = len(windows((16, 16), 3, 2 / 7))
    assert count == 9
    assert model.rows == [2, *[6, 6] * 3]


def test_models_of_one_input_size():
    case = SMALL[4]  # flattened: no other size fits
    images = case.images[:, :, :, :16]
    found = SESS(case.model, case.layer, scales=3).explain(images, 0).saliency[case.layer]
    assert found.shape == (2, 16, 16)
    assert found.amax() > 0


def test_small_images():
    for case in MINI[1:]:
        for name in FAMILY:
            found = saliency(name, case.model, case.images, case.targets, layer=case.layer)
            assert torch.isfinite(found).all()

"""Group-CAM beyond its transcription: which channels come together, and what a group counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference as ref
import torch
from cases import SMALL, assert_same, probability, stack
from models import images as draw_images
from networks import blocks
from test_score_cam import Counted
from test_score_family import rescored, saliency

from gradcam_kit import GroupCAM
from gradcam_kit.methods.group_cam import group_channels
from gradcam_kit.targets import ClassProbability


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

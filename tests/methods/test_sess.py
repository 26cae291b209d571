"""SESS beyond its transcription: which windows there are, and how their maps are put together."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from cases import SMALL, assert_same
from models import images as draw_images
from networks import blocks
from test_score_cam import Counted
from test_score_family import rescored, saliency

from gradcam_kit import SESS, GradCAM
from gradcam_kit.methods.sess import paste_windows, windows
from gradcam_kit.targets import ClassLogit


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

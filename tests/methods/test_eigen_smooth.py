"""EigenSmooth: components of weighted maps instead of their sum."""

from __future__ import annotations

from functools import partial

import pytest
import reference as ref
from cases import SMALL, Sample, assert_same, stack
from models import images as draw_images
from networks import blocks
from test_score_cam import Counted
from test_smoothing import LAYERS, assert_winsorized, mean_of_calls

from gradcam_kit import (
    METHODS,
    EigenCAM,
    EigenSmooth,
    FinerCAM,
    LayerCAM,
    ScoreCAM,
    Smooth,
    WinsorCAM,
    XGradCAM,
    explain_all,
)
from gradcam_kit.errors import InputError


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


def test_components_are_weighed_as_layers():
    images, model = draw_images(2).double(), blocks()
    assert_winsorized(EigenSmooth(WinsorCAM(model, LAYERS)).explain(images, 0), model, [images])


@pytest.mark.parametrize("cam", [ScoreCAM, EigenCAM], ids=lambda cam: cam.name)
def test_components_need_weights(cam):
    with pytest.raises(InputError, match=f"{cam.__name__} does not sum weighted channels"):
        EigenSmooth(cam(blocks()))

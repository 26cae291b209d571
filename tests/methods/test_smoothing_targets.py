"""Smooth and TestTime: every view is scored by the target of the images as they are."""

from __future__ import annotations

import reference as ref
import torch
from cases import assert_same
from models import build
from models import images as draw_images
from networks import blocks
from test_score_cam import Counted
from test_smoothing import EACH, mean_of_calls, views
from torch import nn

from gradcam_kit import (
    FinerCAM,
    GradCAM,
    HiResCAM,
    Smooth,
    TestTime,
)
from gradcam_kit.targets import SegmentationTarget, TopK


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

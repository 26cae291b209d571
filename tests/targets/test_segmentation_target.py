"""`SegmentationTarget`: by hand, against the transcription, and through methods."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from models import build, images, tiny
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from traces import unchanged

from gradcam_kit import GradCAM, ReciproCAM, ScoreCAM
from gradcam_kit.errors import ClassIndexError, InputError, ShapeError
from gradcam_kit.targets import SegmentationTarget

INPUT = images(3, size=(10, 8))
DENSE = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 5.0], [1.0, 6.0]]])[None]
MASK = [[1, 0], [0, 1]]


def dense_model(classes: int = 4, output: Callable[[Tensor], Any] = lambda logits: logits) -> nn.Module:
    """`layer` (3 channels, half the resolution), ReLU, `head` (1x1 convolution), bilinear resizing to the images."""
    return build(
        lambda m, x: output(nn.functional.interpolate(m.head(m.layer(x).relu()), x.shape[2:], mode="bilinear")),
        layer=nn.Conv2d(3, 5, 3, stride=2, padding=1),
        head=nn.Conv2d(5, classes, 1),
    )


def halves() -> Tensor:
    """One mask per image: the left half, the upper half, and nothing."""
    masks = torch.zeros(3, 10, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :5] = True, True
    return masks


def test_region_by_hand() -> None:
    assert SegmentationTarget(MASK, 0)(DENSE).tolist() == [5]
    assert SegmentationTarget(MASK, [1])(DENSE).tolist() == [6]
    assert SegmentationTarget([MASK], [[1, 0]])(DENSE).tolist() == [[6, 5]]
    assert SegmentationTarget(np.array(MASK, dtype=bool), np.int64(0))(DENSE).tolist() == [5]
    assert SegmentationTarget(torch.tensor([[0.5, 0.0], [-1.0, 0.0]]), 0)(DENSE).tolist() == [-2.5]
    assert SegmentationTarget(torch.zeros(2, 2), 0)(DENSE).tolist() == [0]


def test_predicted_region_by_hand() -> None:
    # Class 1 is predicted in the right column, class 0 in the left one.
    assert SegmentationTarget(None, 0)(DENSE).tolist() == [4]
    assert SegmentationTarget(None, [[1, 0]])(DENSE).tolist() == [[11, 4]]
    assert SegmentationTarget(None, 0)(DENSE[:, 1:] - 2).tolist() == [3 + 4]


def test_mask_is_resized_by_area() -> None:
    fine = torch.zeros(4, 4)
    fine[0, 0] = fine[2:, 2:] = 1
    assert SegmentationTarget(fine, 0)(DENSE).tolist() == [1 / 4 + 4]
    assert SegmentationTarget(fine.bool(), 1)(DENSE).tolist() == [6]
    dense = DENSE.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert SegmentationTarget(MASK, 0)(dense).tolist() == [4 * 5]


@pytest.mark.parametrize("size", [(7,), (3, 4), (2, 3, 2)])
def test_scores_equal_the_transcription(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, *size, generator=generator) > 0.5
    expected = [[ref.segmentation_score(z, c, m) for c in (2, 0)] for z, m in zip(logits, masks, strict=True)]
    found = SegmentationTarget(masks, [[2, 0], [2, 0]])(logits)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert_close(SegmentationTarget(masks[1], 2)(logits[1:]), found[1:, 0])
    predicted = [ref.segmentation_score(z, c, z.argmax(0) == c) for z, c in zip(logits, (1, 2), strict=True)]
    assert_close(SegmentationTarget(None, [1, 2])(logits), torch.tensor(predicted, dtype=torch.float64))


@pytest.mark.parametrize(
    "output",
    [
        lambda logits: OrderedDict(out=logits, aux=logits * 2),
        lambda logits: {"aux": logits * 2, "logits": logits},
        lambda logits: (logits,),
    ],
)
def test_dense_output_in_every_form(output: Callable[[Tensor], Any]) -> None:
    target = SegmentationTarget(halves(), 1)
    found = GradCAM(dense_model(output=output), "layer").explain(INPUT, target)
    expected = GradCAM(dense_model(), "layer").explain(INPUT, target)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.heatmaps, expected.heatmaps)


def summed(mask: Tensor, target: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: (logits[:, target] * mask).flatten(1).sum(1)


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, ReciproCAM])
@pytest.mark.parametrize("mask", [halves(), halves()[0]])
def test_methods_explain_the_region(method: Any, mask: Tensor) -> None:
    cam = method(dense_model(), "layer", batch_size=4)
    found = cam.explain(INPUT, SegmentationTarget(mask, 2))
    expected = cam.explain(INPUT, summed(mask, 2))
    assert_close(found.scores, expected.scores)
    assert_close(found.heatmaps, expected.heatmaps, rtol=1e-4, atol=1e-5)
    assert found.is_empty.tolist() == expected.is_empty.tolist()
    assert float(found.heatmaps.amax()) == 1


def test_an_empty_region_has_an_empty_map() -> None:
    found = GradCAM(dense_model(), "layer").explain(INPUT, SegmentationTarget(halves(), 2))
    assert found.scores[2] == 0
    assert found.is_empty.tolist()[2]
    assert not found.heatmaps[2].any()


def test_m_classes_equal_m_calls() -> None:
    classes = torch.tensor([[0, 3], [1, 2], [2, 2]])
    for mask in (halves(), None):
        together = GradCAM(dense_model(), "layer").explain(INPUT, SegmentationTarget(mask, classes))
        assert together.heatmaps.shape == (3, 2, 10, 8)
        for j in range(2):
            alone = GradCAM(dense_model(), "layer").explain(INPUT, SegmentationTarget(mask, classes[:, j]))
            assert_close(together.saliency["layer"][:, j], alone.saliency["layer"])


@pytest.mark.parametrize("classes", [3, [3, 1, 3]])
def test_predicted_region_is_that_of_the_images_as_they_are(classes: Any) -> None:
    model = dense_model()
    with torch.no_grad():
        predicted = model(INPUT).argmax(1)
    masks = predicted == torch.as_tensor(classes).expand(3)[:, None, None]
    assert masks.any()
    found = ScoreCAM(model, "layer").explain(INPUT, SegmentationTarget(None, classes))
    expected = ScoreCAM(model, "layer").explain(INPUT, SegmentationTarget(masks, classes))
    assert_close(found.saliency["layer"], expected.saliency["layer"])
    changed = SegmentationTarget(None, classes).settle(model(INPUT)).select(torch.tensor([2, 0]))(model(-INPUT[[2, 0]]))
    own = SegmentationTarget(masks[[2, 0]], torch.as_tensor(classes).expand(3)[[2, 0]])(model(-INPUT[[2, 0]]))
    assert_close(changed, own)


def test_rows_of_rows_belong_to_their_sample() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.eye(3, 5)
    target = SegmentationTarget(masks, [1, 2, 3])
    index, again = torch.tensor([2, 2, 0, 1]), torch.tensor([3, 0, 2])
    assert_close(target.select(index)(logits[index]), target(logits)[index])
    assert_close(target.select(index).select(again)(logits[index[again]]), target(logits)[index[again]])
    shared = SegmentationTarget(masks[1], 0)
    assert_close(shared.select(index)(logits[index]), shared(logits)[index])


def test_half_precision_does_not_overflow() -> None:
    dense = torch.ones(1, 2, 300, 300, dtype=torch.float16)
    assert SegmentationTarget(None, 0)(dense).tolist() == [90000]
    assert SegmentationTarget(torch.ones(10, 10), 1)(dense).tolist() == [90000]
    found = GradCAM(dense_model().bfloat16(), "layer").explain(INPUT.bfloat16(), SegmentationTarget(halves(), 2))
    expected = GradCAM(dense_model(), "layer").explain(INPUT, SegmentationTarget(halves(), 2))
    assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=0.05)


def test_torchvision_segmentation() -> None:
    model, layer = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval(), "backbone.16"
    picture = images(2, size=(64, 48))
    masks = torch.zeros(2, 64, 48, dtype=torch.bool)
    masks[:, 8:24] = True
    with unchanged(model, picture, masks):
        found = GradCAM(model, layer).explain(picture, SegmentationTarget(masks, [1, 3]))
    expected = GradCAM(model, layer).explain(
        picture, lambda output: (output["out"][[0, 1], [1, 3]] * masks).sum((1, 2))
    )
    assert found.heatmaps.isfinite().all()
    assert not found.is_empty.all()
    assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    assert_close(found.heatmaps, expected.heatmaps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SegmentationTarget(torch.ones(2, 10, 8), 0), ShapeError, r"\(2, 10, 8\).*\(h, w\).*\(3, h, w\)"),
        (lambda: SegmentationTarget(torch.ones(10), 0), ShapeError, r"the mask has shape \(10,\)"),
        (lambda: SegmentationTarget(None, 4), ClassIndexError, "class 4 for a model with 4"),
        (lambda: SegmentationTarget(None, [1, 2]), ShapeError, "2 targets for 3 images"),
        (lambda: SegmentationTarget("left", 0), InputError, "mask is a str"),
        (lambda: SegmentationTarget([[0.0, float("nan")]], 0), InputError, "mask has .*NaN"),
        (lambda: SegmentationTarget(None, 0.5), InputError, "integer class indices"),
    ],
)
@pytest.mark.parametrize("layer", ["layer", None])
def test_refused_regions_say_what_is_wrong(
    make: Callable[[], Any], error: type[Exception], message: str, layer: str | None
) -> None:
    with pytest.raises(error, match=message):
        GradCAM(dense_model(), layer)(INPUT, make())


def test_class_scores_have_no_region() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 5\); SegmentationTarget needs"):
        GradCAM(tiny(), "relu2")(INPUT, SegmentationTarget(None, 0))

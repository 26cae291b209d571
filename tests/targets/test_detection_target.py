"""`DetectionTarget`: by hand, through methods, and on torchvision's detectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from models import build, images
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, retinanet_resnet50_fpn
from traces import same, traces

from gradcam_kit import EigenCAM, GradCAM, ReciproCAM, ScoreCAM
from gradcam_kit.errors import ClassIndexError, InputError, OptionError, ShapeError, TargetError
from gradcam_kit.targets import DetectionTarget, Negative

INPUT = images(3, size=(12, 12))
LEFT, RIGHT = [0.0, 0.0, 4.0, 10.0], [6.0, 0.0, 10.0, 10.0]
DETECTIONS = {
    "boxes": torch.tensor([LEFT, LEFT, RIGHT, [0.0, 0.0, 4.0, 5.0]]),
    "scores": torch.tensor([0.25, 0.75, 0.5, 0.125]),
    "labels": torch.tensor([1, 2, 1, 3]),
}


def reversed_rows(detections: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.flip(0) for key, value in detections.items()}


# By hand


def test_the_largest_overlap_counts_then_the_largest_score() -> None:
    for output in ([DETECTIONS], [reversed_rows(DETECTIONS)]):
        assert DetectionTarget(LEFT)(output).tolist() == [0.75]
        assert DetectionTarget([RIGHT])(output).tolist() == [0.5]
        assert DetectionTarget([0, 0, 4, 9])(output).tolist() == [0.75]  # 0.9, and 5/9 for the small box
        assert DetectionTarget([0, 0, 4, 6])(output).tolist() == [0.125]  # 5/6 for the small box, 0.6
        assert DetectionTarget([0, 0, 4, 6], labels=1)(output).tolist() == [0.25]
        assert DetectionTarget(LEFT, labels=[1])(output).tolist() == [0.25]


def test_each_sample_has_its_own_box_and_label() -> None:
    output = [DETECTIONS, DETECTIONS]
    assert DetectionTarget([LEFT, RIGHT])(output).tolist() == [0.75, 0.5]
    assert DetectionTarget(LEFT, labels=[2, 1])(output).tolist() == [0.75, 0.25]
    index = torch.tensor([1, 1, 0])
    for target in (DetectionTarget([LEFT, RIGHT], labels=[1, 1]), DetectionTarget(LEFT), DetectionTarget(LEFT, 1)):
        assert torch.equal(target.select(index)([DETECTIONS] * 3), target(output)[index])


def test_the_least_overlap_counts_as_one() -> None:
    box = [0.0, 0.0, 4.0, 8.0]  # 0.8 of the left one
    assert DetectionTarget(box, iou=0.8)([DETECTIONS]).tolist() == [0.75]
    with pytest.raises(TargetError, match=r"image 0 .*\[0.0, 0.0, 4.0, 8.0\].*at least 0.81.*best of 4 .* has 0.80"):
        DetectionTarget(box, iou=0.81)([DETECTIONS])


def test_output_in_every_form() -> None:
    batched = {key: torch.stack([value, value.flip(0)]) for key, value in DETECTIONS.items()}
    assert DetectionTarget([LEFT, RIGHT])(batched).tolist() == [0.75, 0.5]
    assert DetectionTarget(RIGHT)(DETECTIONS).tolist() == [0.5]
    assert DetectionTarget(RIGHT)((DETECTIONS,)).tolist() == [0.5]
    without = {key: DETECTIONS[key] for key in ("boxes", "scores")}
    assert DetectionTarget(LEFT)([without]).tolist() == [0.75]
    # center, width, height: the unit's left half and its middle
    queries = {
        "pred_boxes": torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5]]]).expand(2, -1, -1),
        "logits": torch.arange(12.0).view(2, 2, 3),
    }
    assert DetectionTarget([0, 0, 0.5, 1], labels=[1, 2])(queries).tolist() == [1, 8]
    assert DetectionTarget([0.25, 0.25, 0.75, 0.75], labels=0)(queries).tolist() == [3, 9]


def test_what_is_settled_is_not_required_in_changed_images() -> None:
    target = DetectionTarget([LEFT, RIGHT]).settle([DETECTIONS, DETECTIONS])
    none = {key: value[:0] for key, value in DETECTIONS.items()}
    stronger = DETECTIONS | {"scores": torch.tensor([0.9, 0.3, 0.1, 0.0])}
    assert target([stronger, none]).tolist() == pytest.approx([0.3, 0])  # still label 2
    assert target.select(torch.tensor([1, 0, 1]))([none, stronger, stronger]).tolist() == pytest.approx([0, 0.3, 0.1])
    given = DetectionTarget(LEFT, labels=1).settle([DETECTIONS])
    assert given([stronger]).tolist() == pytest.approx([0.9])


def test_a_box_that_is_not_required_scores_zero() -> None:
    target = DetectionTarget([LEFT, [20, 20, 30, 30]], required=False)
    assert target([DETECTIONS, DETECTIONS]).tolist() == [0.75, 0]
    assert target.settle([DETECTIONS, DETECTIONS])([DETECTIONS, DETECTIONS]).tolist() == [0.75, 0]
    assert DetectionTarget(LEFT, labels=9, required=False)([DETECTIONS]).tolist() == [0]


def test_the_gradient_is_that_of_the_score() -> None:
    scores = DETECTIONS["scores"].clone().requires_grad_()
    detections = DETECTIONS | {"scores": scores}
    total = DetectionTarget([LEFT, RIGHT])([detections, detections]).sum()
    assert torch.autograd.grad(total, scores)[0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DetectionTarget([20, 20, 30, 30])([DETECTIONS]), TargetError, "of 4 detections has 0.00.*lower iou"),
        (lambda: DetectionTarget(RIGHT, labels=2)([DETECTIONS]), TargetError, "with label 2 .* of 4 .* has 0.00"),
        (lambda: DetectionTarget([LEFT, RIGHT], labels=2)([DETECTIONS] * 2), TargetError, "label 2 in image 1"),
        (lambda: DetectionTarget(LEFT)([{"boxes": torch.ones(0, 4), "scores": torch.ones(0)}]), TargetError, "of 0"),
        (lambda: DetectionTarget([LEFT] * 3)([DETECTIONS]), ShapeError, "3 boxes for 1 images"),
        (lambda: DetectionTarget(LEFT, labels=[1, 2])([DETECTIONS]), ShapeError, "2 labels for 1 images"),
        (lambda: DetectionTarget(LEFT)(torch.ones(2, 3)), TargetError, "output is a Tensor; DetectionTarget reads"),
        (lambda: DetectionTarget(LEFT)([{"boxes": torch.ones(1, 4)}]), TargetError, "keys: boxes.; .* 'scores'"),
        (lambda: DetectionTarget(LEFT)({"logits": torch.ones(1, 2)}), TargetError, r"dict \(keys: logits"),
        (lambda: DetectionTarget(LEFT)({"pred_boxes": torch.ones(1, 2, 4), "logits": torch.ones(1, 2, 3)}),
         TargetError, "pass labels="),
        (lambda: DetectionTarget(LEFT, 3)({"pred_boxes": torch.ones(1, 2, 4), "logits": torch.ones(1, 2, 3)}),
         ClassIndexError, "class 3 for a model with 3"),
        (lambda: DetectionTarget([1, 2, 3]), ShapeError, r"boxes have shape \(3,\)"),
        (lambda: DetectionTarget([4, 0, 2, 2]), TargetError, "expected .x0, y0, x1, y1. with x0 < x1"),
        (lambda: DetectionTarget("box"), InputError, "boxes is a str"),
        (lambda: DetectionTarget(LEFT, labels=[[1]]), ShapeError, r"labels have shape \(1, 1\)"),
        (lambda: DetectionTarget(LEFT, iou=0.0), OptionError, "iou is 0.0"),
    ],
)  # fmt: skip
def test_refused_boxes_say_what_is_wrong(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# Methods


def read_maps(m: Any, x: Tensor) -> list[dict[str, Tensor]]:
    """Two detections per image, one label each; the first is gone where the image is dark."""
    scores = m.head(m.layer(x).relu().mean((2, 3))).sigmoid()
    boxes = torch.tensor([LEFT, RIGHT])
    kept = [slice(0 if image.mean() > -0.05 else 1, None) for image in x]
    return [
        {"boxes": boxes[k], "scores": s[k], "labels": torch.arange(2)[k]} for s, k in zip(scores, kept, strict=True)
    ]


@cache
def detector() -> nn.Module:
    return build(read_maps, layer=nn.Conv2d(3, 4, 3, stride=2, padding=1), head=nn.Linear(4, 2))


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, ReciproCAM, EigenCAM])
def test_methods_explain_the_score_of_the_box(method: Any) -> None:
    cam = method(detector(), "layer", batch_size=4)
    picture = INPUT + 0.2

    def score(output: list[dict[str, Tensor]]) -> Tensor:
        own = [(one["labels"] == (0, 1, 1)[i]) for i, one in enumerate(output)]
        return torch.stack([(one["scores"] * keep).sum() for one, keep in zip(output, own, strict=True)])

    found = cam.explain(picture, DetectionTarget([LEFT, RIGHT, RIGHT]))
    expected = cam.explain(picture, score)
    assert_close(found.scores, expected.scores)
    assert_close(found.saliency["layer"], expected.saliency["layer"])
    assert float(found.heatmaps.amax()) == 1
    negative = cam.explain(picture, Negative(DetectionTarget([LEFT, RIGHT, RIGHT])))
    assert torch.equal(negative.scores, -found.scores)


@pytest.mark.parametrize("layer", ["layer", None])
@pytest.mark.parametrize("method", [GradCAM, ScoreCAM])
def test_a_missing_box_is_an_error_of_the_images_as_they_are(method: Any, layer: str | None) -> None:
    dark = torch.cat([INPUT[:2] + 0.2, INPUT[2:] - 2])
    with pytest.raises(TargetError, match="in image 2 overlaps"):
        method(detector(), layer)(dark, DetectionTarget(LEFT))
    found = method(detector(), "layer").explain(dark, DetectionTarget(LEFT, required=False))
    assert found.scores[2] == 0
    assert not found.heatmaps[2].any() or method is ScoreCAM


# torchvision


@cache
def torchvision_detector(make: Callable[..., nn.Module]) -> nn.Module:
    """Small random detectors that keep whatever they find."""
    few = {"box_score_thresh": 0.0, "rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_test": 10}
    if make is retinanet_resnet50_fpn:
        few = {"score_thresh": 0.0, "topk_candidates": 10}
    torch.manual_seed(0)
    return make(weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64, **few).eval()


DETECTORS = [
    (fasterrcnn_mobilenet_v3_large_320_fpn, "backbone.body.16", ["backbone.fpn:0", "backbone.fpn:1"]),
    (retinanet_resnet50_fpn, "backbone.body.layer4", [f"backbone.fpn:{level}" for level in range(5)]),
]


@pytest.mark.parametrize(("make", "layer", "levels"), DETECTORS)
def test_torchvision_detectors(make: Callable[..., nn.Module], layer: str, levels: list[str]) -> None:
    model, picture = torchvision_detector(make), images(2, size=(64, 64))
    with torch.no_grad():
        detections = model(picture)
    # The least likely of those that have an area.
    chosen = [int((one["boxes"][:, 2:] > one["boxes"][:, :2]).all(1).nonzero()[-1]) for one in detections]
    boxes, labels, scores = (
        torch.stack([one[key][i] for one, i in zip(detections, chosen, strict=True)])
        for key in ("boxes", "labels", "scores")
    )
    before = traces(model, picture)
    found = GradCAM(model, layer).explain(picture, DetectionTarget(boxes, labels))
    after = traces(model, picture)
    # The model itself renews its anchors in every pass.
    assert [key for key in before if not same(before[key], after[key]) and "cell_anchors" not in key] == []
    assert_close(found.scores, scores)
    assert found.heatmaps.shape == (2, 64, 64)
    assert found.heatmaps.isfinite().all()
    assert not found.is_empty.all()
    fused = GradCAM(model, levels).explain(picture, DetectionTarget(boxes, labels))
    assert list(fused.saliency) == list(fused.layers) == levels
    assert fused.heatmaps.isfinite().all()
    assert fused.saliency[levels[0]].shape[1:] != fused.saliency[levels[-1]].shape[1:] or len(levels) == 2
    first = GradCAM(model, "backbone.fpn", reshape=lambda output: output["0"])
    alone = first.explain(picture, DetectionTarget(boxes, labels))
    assert_close(fused.saliency[levels[0]], alone.saliency["backbone.fpn"])


@pytest.mark.parametrize(("method", "options"), [(ScoreCAM, {"channels": 6}), (ReciproCAM, {})])
def test_rows_of_a_detector_that_keeps_samples_in_objects(method: Any, options: dict[str, Any]) -> None:
    model, layer = torchvision_detector(fasterrcnn_mobilenet_v3_large_320_fpn), "backbone.body.13"
    picture = images(2, size=(64, 64))
    with torch.no_grad():
        boxes = torch.stack([one["boxes"][0] for one in model(picture)])
    together = method(model, layer, **options).explain(picture, DetectionTarget(boxes)).saliency[layer]
    alone = method(model, layer, batch_size=1, **options).explain(picture[1:], DetectionTarget(boxes[1]))
    assert_close(together[1:], alone.saliency[layer], rtol=1e-3, atol=1e-5)

"""`DetectionTarget.of`: a target of every box, its coordinates, and ODAM and D-RISE on real detectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from models import build, images
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from gradcam_kit import DRISE, ODAM
from gradcam_kit.errors import DetectionIndexError, OptionError, TargetError
from gradcam_kit.targets import DetectionTarget

INPUT = images(3, size=(12, 12))
LEFT, RIGHT = [0.0, 0.0, 4.0, 10.0], [6.0, 0.0, 10.0, 10.0]
DETECTIONS = {
    "boxes": torch.tensor([LEFT, LEFT, RIGHT, [0.0, 0.0, 4.0, 5.0]]),
    "scores": torch.tensor([0.25, 0.75, 0.5, 0.125]),
    "labels": torch.tensor([1, 2, 1, 3]),
}


def reversed_rows(detections: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.flip(0) for key, value in detections.items()}


def test_a_target_for_each_detection_of_an_image() -> None:
    output = [DETECTIONS, reversed_rows(DETECTIONS)]
    for image in (0, 1):
        targets = DetectionTarget.of(output, image=image, score_above=0.2)
        assert [target.boxes.tolist() for target in targets] == [LEFT, RIGHT, LEFT]
        assert [target.labels for target in targets] == [2, 1, 1]
        assert [float(target([DETECTIONS])) for target in targets] == [0.75, 0.5, 0.25]
    assert [float(target([DETECTIONS])) for target in DetectionTarget.of(output, detections=[3, 0])] == [0.125, 0.25]
    assert float(DetectionTarget.of(output, detections=2, part="x1")[0]([DETECTIONS])) == 10
    assert len(DetectionTarget.of([DETECTIONS | {"boxes": torch.zeros(4, 4)}])) == 0  # without area
    without = {key: DETECTIONS[key] for key in ("boxes", "scores")}
    assert [target.labels for target in DetectionTarget.of(without)] == [None]


def test_a_target_for_each_query_that_sees_an_object() -> None:
    boxes = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1]]])
    softmax = {"pred_boxes": boxes, "logits": torch.tensor([[[1.0, 6.0, 2.0], [0.0, 1.0, 8.0], [0.0, 0.0, 7.0]]])}
    sigmoid = {"pred_boxes": boxes, "logits": torch.tensor([[[-3.0, 2.0, -4.0], [-3.0, -2.0, -1.0], [-3.0, -4, -5]]])}
    for output in (softmax, sigmoid):
        [target] = DetectionTarget.of(output)
        assert (target.boxes.tolist(), target.labels) == ([0, 0, 0.5, 1], 1)
        assert float(target(output)) == float(output["logits"][0, 0, 1])
    doubtful = {"pred_boxes": boxes, "logits": torch.tensor([[[3.0, 2.0, -4.0], [3.0, 2.0, -1.0], [3.0, 4, 5]]])}
    with pytest.raises(TargetError, match=r"are ambiguous; pass scores='softmax' .* or scores='sigmoid'"):
        DetectionTarget.of(doubtful)
    assert len(DetectionTarget.of(doubtful, scores="sigmoid")) == 3
    assert [target.labels for target in DetectionTarget.of(doubtful, scores="softmax", score_above=0.6)] == [0, 0]


def test_every_part_of_a_box_is_explained() -> None:
    boxes = DETECTIONS["boxes"].clone().requires_grad_()
    output = [DETECTIONS | {"boxes": boxes}]
    expected = {"x0": 6, "y0": 0, "x1": 10, "y1": 10, "x": 8, "y": 5, "width": 4, "height": 10, "score": 0.5}
    for part, value in expected.items():
        target = DetectionTarget(RIGHT, part=part).settle(output)
        assert target(output).tolist() == [value]
        none = {key: column[:0] for key, column in DETECTIONS.items()}
        assert target([none]).tolist() == [0]
    [width] = DetectionTarget(RIGHT, part="width")(output)
    assert torch.autograd.grad(width, boxes)[0].tolist() == [[0] * 4, [0] * 4, [-1, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DetectionTarget.of(torch.ones(2, 3)), TargetError, "output is a Tensor; DetectionTarget reads"),
        (lambda: DetectionTarget.of([{"scores": torch.ones(2)}]), TargetError, r"list \(keys: scores"),
        (lambda: DetectionTarget.of([{"boxes": torch.ones(0, 4), "scores": torch.ones(0)}]), TargetError,
         "found no box in image 0"),
        (lambda: DetectionTarget.of([DETECTIONS], score_above=0.8), TargetError,
         "no detection in image 0 scores above 0.8: the best of 4 has 0.75; lower score_above"),
        (lambda: DetectionTarget.of([DETECTIONS], image=1), DetectionIndexError, "image 1: the output has 1, with"),
        (lambda: DetectionTarget.of([DETECTIONS], detections=4), DetectionIndexError, "detection 4: the output has 4"),
        (lambda: DetectionTarget.of([DETECTIONS], detections=[-1]), DetectionIndexError, "no detection -1"),
        (lambda: DetectionTarget.of([DETECTIONS], score_above=float("nan")), OptionError, "score_above is nan"),
    ],
)  # fmt: skip
def test_boxes_that_are_not_there(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_odam_tells_two_instances_of_one_class_apart() -> None:
    """Each half of the image decides the score and a side of its own box."""
    scale = nn.Conv2d(3, 4, 3, padding=1)

    def read(m: Any, x: Tensor) -> list[dict[str, Tensor]]:
        maps = m.layer(x).relu()
        halves = torch.stack([maps[..., :6].mean((1, 2, 3)), maps[..., 6:].mean((1, 2, 3))], 1)
        sides = torch.tensor([LEFT, RIGHT]).expand(len(x), -1, -1)
        boxes = torch.cat([sides[..., :2], sides[..., 2:] + halves[..., None]], 2)
        rows = zip(boxes, halves.sigmoid(), strict=True)
        return [{"boxes": own, "scores": scores, "labels": torch.tensor([1, 1])} for own, scores in rows]

    model, picture = build(read, layer=scale), INPUT[:1]
    with torch.no_grad():
        output = model(picture)
    for part in ("score", "x1"):
        for target in DetectionTarget.of(output, score_above=0.1, part=part):
            saliency = ODAM(model, "layer", sigma=0.0).explain(picture, target).saliency["layer"][0].abs()
            left = target.boxes[0] == 0
            assert float(saliency[:, 6:].sum() if left else saliency[:, :6].sum()) == 0
            assert float(saliency.sum()) > 0


@cache
def faster_rcnn() -> nn.Module:
    """Random, so that it keeps whatever it finds."""
    few = {"box_score_thresh": 0.0, "rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_test": 10}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = fasterrcnn_mobilenet_v3_large_320_fpn
        return make(weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64, **few).eval()


def test_the_sides_of_a_torchvision_box_have_gradients() -> None:
    model, picture = faster_rcnn(), images(1, size=(64, 64))
    with torch.no_grad():
        output = model(picture)
    targets = DetectionTarget.of(output, score_above=0.0, part="x0")
    assert len(targets) == int((output[0]["boxes"][:, 2:] > output[0]["boxes"][:, :2]).all(1).sum())
    found = ODAM(model, "backbone.fpn:0").explain(picture, targets[0])
    assert_close(found.scores, targets[0].boxes[:1])
    assert found.saliency["backbone.fpn:0"].isfinite().all()
    masked = DRISE(model, masks=4).explain(picture, DetectionTarget.of(output, score_above=0.0)[0])
    assert masked.heatmaps.isfinite().all()


def test_detr_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, num_labels=3, num_queries=5, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2,
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"],
            layer_type="basic",
        ),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.DetrForObjectDetection(config).eval()
    picture = images(2, size=(64, 64))
    with torch.no_grad():
        output = model(picture)
    [target, *_] = DetectionTarget.of(output, image=1, score_above=0.0, scores="softmax")
    name = next(name for name, _ in model.named_modules() if name.endswith("stages.3"))
    explained = ODAM(model, name).explain(picture[1:], target)
    assert_close(explained.scores, target(output_of(model, picture[1:])))
    assert explained.heatmaps.shape == (1, 64, 64)
    side = ODAM(model, name).explain(picture[1:], DetectionTarget.of(
        output, image=1, detections=0, scores="softmax", part="width")[0])  # fmt: skip
    assert float(side.scores) == pytest.approx(float(output.pred_boxes[1, 0, 2]), rel=1e-4)


def output_of(model: nn.Module, picture: Tensor) -> Any:
    with torch.no_grad():
        return model(picture)

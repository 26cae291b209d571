"""Levels of pyramids: which one carries which object, a level without use, and what is left behind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from traces import unchanged

from gradcam_kit.diagnostics import pyramid_levels
from gradcam_kit.diagnostics.pyramid_anchors import _reach_of_distances, _reach_of_shapes
from gradcam_kit.errors import InputError, OptionError

SMALL = {"min_size": 96, "max_size": 128}
DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_fpn": (["0", "1", "pool"], SMALL),
    "retinanet_resnet50_fpn": (["0", "1", "2", "p6", "p7"], SMALL),
    "fcos_resnet50_fpn": (["0", "1", "2", "p6", "p7"], SMALL),
    "ssdlite320_mobilenet_v3_large": ([str(i) for i in range(6)], {}),
}


@cache
def detector(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = DETECTORS[name][1]
        return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3, **options)


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 72, 96, generator=generator), torch.rand(3, 80, 60, generator=generator)]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_object_has_a_level_and_healthy_detectors_have_no_finding(name: str) -> None:
    model, given = detector(name).train(), images()
    with unchanged(model, *given):
        found = pyramid_levels(model, given)
    assert [level.name for level in found.levels] == DETECTORS[name][0]
    assert found.pyramid == "backbone"
    assert found.findings == ()
    assert {one.image for one in found.objects} == {0, 1}
    for size in ("small", "medium", "large"):
        own = [one for one in found.objects if one.size == size]
        assert sum(level.objects[size] for level in found.levels) == len(own)
        total = sum(one.score for one in own)
        for level in found.levels:
            mine = sum(one.score for one in own if one.level == level.name)
            assert level.strength[size] == pytest.approx(mine / total if own else float("nan"), nan_ok=True)
    for one in found.objects:
        x0, y0, x1, y1 = one.box
        area, (h, w) = (x1 - x0) * (y1 - y0), given[one.image].shape[1:]
        assert one.size == ("small" if area <= 32**2 else "medium" if area <= 96**2 else "large")
        assert 0 <= x0 <= x1 <= w + 1e-3
        assert 0 <= y0 <= y1 <= h + 1e-3


def test_objects_are_detections_and_their_levels_those_of_the_anchors() -> None:
    model = detector("ssdlite320_mobilenet_v3_large").eval()
    given = images()
    with torch.no_grad():
        detections = model([one.clone() for one in given])
    found = pyramid_levels(model, given, objects=7)
    assert [one.score for one in found.objects] == pytest.approx(
        [float(s) for d in detections for s in d["scores"][:7]]
    )
    features, seen = {}, []
    hook = model.backbone.register_forward_hook(lambda module, args, output: features.update(output))
    head = model.head.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model([one.clone() for one in given])
    hook.remove()
    head.remove()
    counts = [own.shape[-2] * own.shape[-1] * 6 for own in features.values()]
    scores = seen[0]["cls_logits"].softmax(2)[..., 1:].amax(2)
    for one in found.objects[:3]:
        anchors = (scores[one.image] - one.score).abs() < 1e-6
        levels = {
            next(i for i in range(6) if place < sum(counts[: i + 1])) for place in anchors.nonzero()[:, 0].tolist()
        }
        assert int(one.level) in levels


def test_a_level_whose_anchors_match_nothing_is_named_and_its_twin_is_not() -> None:
    model = detector("retinanet_resnet50_fpn")
    healthy = model.anchor_generator
    sizes = [(32.0, 40.0, 50.0), (64.0, 80.0, 101.0), (1e5, 1.2e5, 1.5e5), (256.0, 322.0, 406.0), (512.0, 645.0, 812.0)]
    try:
        model.anchor_generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        found = pyramid_levels(model, images())
    finally:
        model.anchor_generator = healthy
    [finding] = found.findings
    assert (finding.level, finding.kind, finding.layer) == ("warn", "dead", "backbone:2")
    assert "Level '2' of the pyramid never carries an object: its anchors of 1e+05" in finding.message
    assert [level.never for level in found.levels] == [False, False, True, False, False]
    assert any("Level 'p7' is for boxes of" in note for note in found.notes)
    assert any("The detector finds nothing" in note for note in found.notes)


def test_which_boxes_a_level_is_for() -> None:
    low, high = _reach_of_shapes([torch.tensor([[32.0, 32.0]]), torch.tensor([[128.0, 128.0]])])
    # A square of side s is nearer to 32 than to 128 below their geometric mean, 64, where an overlap is 0.25: none.
    assert low[0] <= 32 <= low[1] < 64 < high[0] <= 128 <= high[1]
    assert _reach_of_shapes([torch.zeros(0, 2), torch.zeros(3, 2), torch.full((1, 2), 50.0)])[:2] == [(0.0, 0.0)] * 2
    strides = [torch.full((1, 2), stride) for stride in (8.0, 16.0, 4000.0, 64.0)]
    assert _reach_of_distances(strides) == [(0.0, 128.0), (128.0, 256.0), (0.0, 0.0), (512.0, 1333.0)]


class Toy(nn.Module):
    """A detector that is none of torchvision's: two levels, of which the head may use the first alone."""

    def __init__(self, used: int = 2) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)
        self.head, self.used = nn.Conv2d(4, 1, 1), used
        self.fpn = Levels()

    def forward(self, images: Any) -> Any:
        first = self.stem(torch.stack(list(images)))
        levels = list(self.fpn([first, self.down(first)]))[: self.used]
        scores = torch.cat([self.head(level).flatten(1).topk(2).values for level in levels], 1).sigmoid()
        boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 40, 40], [0, 0, 9, 9], [0, 0, 99, 99]])[: scores.shape[1]]
        return [{"boxes": boxes, "scores": own} for own in scores]


class Levels(nn.Module):
    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return levels


def test_of_other_detectors_gradients_tell_the_level() -> None:
    toy, given = Toy().train(), torch.rand(2, 3, 32, 32)
    with unchanged(toy, given):
        found = pyramid_levels(toy, given)
    assert found.findings == ()
    assert found.pyramid == "fpn"
    scores = [own["scores"] for own in toy.eval()(given)]
    for one in found.objects:
        place = int((scores[one.image] - one.score).abs().argmin())
        assert one.level == str(place // 2)
    assert found.levels[1].strength == {"small": pytest.approx(0.5, abs=0.2), "medium": 0, "large": 1}
    [finding] = pyramid_levels(Toy(used=1), given).findings
    assert (finding.kind, finding.layer) == ("dead", "fpn:1")
    assert "no output depends on it" in finding.message


def test_it_shows_itself() -> None:
    found = pyramid_levels(Toy(used=1), torch.rand(2, 3, 32, 32))
    assert found.plot().axes
    assert list(found.to_pandas()["small objects"]) == [2, 0]
    assert "WARN dead in fpn:1" in str(found)
    assert "<svg" in found._repr_html_()


def test_a_detector_without_a_pyramid_and_bad_input_are_one_line() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3))
    backbone.out_channels = 8
    generator = AnchorGenerator(((32,),), ((1.0,),))
    single = detection.FasterRCNN(
        backbone, 3, rpn_anchor_generator=generator, box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2), **SMALL
    )
    given = torch.rand(1, 3, 32, 32)
    for call, error, message in (
        (
            lambda: pyramid_levels(plain, given),
            InputError,
            "Sequential has no pyramid: none of its modules returned several",
        ),
        (lambda: pyramid_levels(single, given), InputError, "FasterRCNN has no pyramid: its backbone returns a single"),
        (lambda: pyramid_levels(Toy(), []), InputError, "images is empty; expected a list of tensors"),
        (lambda: pyramid_levels(Toy(), given[0]), InputError, r"images have shape \(3, 32, 32\)"),
        (lambda: pyramid_levels(Toy(), [given]), InputError, r"an image is \(1, 3, 32, 32\)"),
        (lambda: pyramid_levels(Toy(), given, objects=0), OptionError, "objects is 0"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

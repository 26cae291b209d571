"""Read the anchors of torchvision's detectors: the level that produces each box, and the box sizes of each level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradcam_kit.capture import Call, Observer, observe
from gradcam_kit.diagnostics.pyramid_maps import Detected, PyramidMaps, call_detector, level_map, levels_of
from gradcam_kit.errors import InputError

_CANDIDATES = 4000  # number of strongest boxes of an image to inspect
_STRONGEST = 20  # number of boxes of an image that are used as objects if the detector finds none
_OVERLAP = 0.5  # intersection over union above which boxes belong to the same object
_MATCHED = 0.3  # intersection over union below which anchors are background, Ren et al. 2015
_SMALLEST, _LARGEST = (
    4.0,
    1333.0,
)  # range of box sides that a level could carry; torchvision resizes images to at most 1333
_STEPS = 8  # number of box sizes per doubling
_RATIOS = (0.5, 1.0, 2.0)
_FCOS_RANGE = (4.0, 8.0)  # a location of FCOS is responsible for distances of 4 to 8 strides: Tian et al. 2019


@dataclass
class _Parts:
    """The names of the inspected head and anchor generator of a detector, and its box coder."""

    head: str
    anchors: str
    coder: Any


class _Reader(Observer):
    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self.sizes: list[tuple[int, int]] = []

    def leave(self, call: Call) -> None:
        self.outputs[call.name] = call.output
        if call.args and hasattr(call.args[0], "image_sizes"):
            self.sizes = [(int(h), int(w)) for h, w in call.args[0].image_sizes]


def is_anchored(detector: nn.Module) -> bool:
    """Whether a detector uses torchvision's anchors, so that the anchor of each box is known."""
    return _parts(detector) is not None


def anchored(detector: nn.Module, images: Any, objects: int) -> tuple[PyramidMaps, list[Detected], list[str]]:
    """Return the levels, the objects and the notes of a detector of torchvision.

    Raises:
        InputError: its backbone returns a single map, or the anchors do not fit the maps.
    """
    parts = _parts(detector)
    assert parts is not None
    names = ("backbone", parts.head, parts.anchors)
    reader = _Reader()
    with torch.no_grad(), observe(detector, {name: detector.get_submodule(name) for name in names}, reader):
        output = call_detector(detector, images)
    maps = levels_of(reader.outputs["backbone"])
    if not maps:
        raise InputError(
            f"{type(detector).__name__} has no pyramid: its backbone returns a single feature map; pass a detector "
            "with a feature pyramid, such as fasterrcnn_resnet50_fpn"
        )
    anchors: list[Tensor] = reader.outputs[parts.anchors]
    counts = _counts(detector.get_submodule(parts.anchors), [own for _, own in maps], len(anchors[0]))
    level_of = torch.repeat_interleave(torch.arange(len(maps)), torch.tensor(counts))
    boxes, scores = _candidates(detector, parts, reader.outputs[parts.head], anchors)
    shapes = [own[:, 2:] - own[:, :2] for own in anchors[0].detach().float().cpu().split(counts)]
    free = "bbox_ctrness" in reader.outputs[parts.head]
    reach = _reach_of_distances(shapes) if free else _reach_of_shapes(shapes)
    largest = max(max(size) for size in reader.sizes)
    levels = [
        level_map(name, own, anchors=count, sizes=_sides(shape), never=high == 0)
        for (name, own), count, shape, (_, high) in zip(maps, counts, shapes, reach, strict=True)
    ]
    notes = [
        f"Level {own.name!r} is for boxes of at least {low:.0f} pixels, but the longest side of the resized images "
        f"is {largest} pixels."
        for own, (low, high) in zip(levels, reach, strict=True)
        if high and low > largest
    ]
    found = [list(output[image]["scores"].detach().cpu()) for image in range(len(output))]
    if not any(found):
        notes.append("The detector finds nothing in these images, so its strongest boxes are used as objects.")
    detected: list[Detected] = []
    for image, size in enumerate(reader.sizes):
        given = images[image].shape[-2:]
        scale = torch.tensor([given[1] / size[1], given[0] / size[0]]).repeat(2)
        order = scores[image].argsort(descending=True, stable=True)[:_CANDIDATES]
        own = _clipped(boxes[image][order], size) * scale
        strengths, whose = scores[image][order], level_of[order]
        if any(found):
            detected += _carried(image, output[image], own, whose, objects)
        else:
            detected += _strongest(image, own, strengths, whose, min(objects, _STRONGEST))
    return PyramidMaps("backbone", tuple(levels)), detected, notes


def _parts(detector: nn.Module) -> _Parts | None:
    try:
        from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
    except ImportError:  # this installation lacks torchvision's operators
        return None
    for prefix in ("", "rpn."):
        owner = getattr(detector, "rpn", None) if prefix else detector
        generator, head = getattr(owner, "anchor_generator", None), getattr(owner, "head", None)
        has_backbone = isinstance(getattr(detector, "backbone", None), nn.Module)
        if (
            isinstance(generator, AnchorGenerator | DefaultBoxGenerator)
            and isinstance(head, nn.Module)
            and has_backbone
        ):
            coder = getattr(owner, "box_coder", None)
            return None if coder is None else _Parts(f"{prefix}head", f"{prefix}anchor_generator", coder)
    return None


def _counts(generator: Any, maps: Sequence[Tensor], total: int) -> list[int]:
    """Return how many anchors each level has for an image."""
    places = [own.shape[-2] * own.shape[-1] for own in maps]
    counts = [each * place for each, place in zip(generator.num_anchors_per_location(), places, strict=False)]
    if len(counts) != len(places) or sum(counts) != total:
        raise InputError(
            f"the anchor generator gives {total} anchors for maps of {places} positions; expected a whole number of "
            "anchors for each position of each level"
        )
    return counts


def _candidates(
    detector: nn.Module, parts: _Parts, head: Any, anchors: list[Tensor]
) -> tuple[list[Float[Tensor, "a 4"]], list[Float[Tensor, " a"]]]:
    """Return the box and the best score of each anchor for each image, on the host."""
    if not isinstance(head, dict):  # two-stage detectors: read the first stage
        from torchvision.models.detection.rpn import concat_box_prediction_layers

        objectness, deltas = concat_box_prediction_layers(list(head[0]), list(head[1]))
        decoded = parts.coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        return list(decoded.cpu()), list(objectness.sigmoid().view(len(anchors), -1).cpu())
    decode = getattr(parts.coder, "decode_single", parts.coder.decode)
    boxes = [decode(own, place).float().cpu() for own, place in zip(head["bbox_regression"], anchors, strict=True)]
    logits = head["cls_logits"].float()
    if "bbox_ctrness" in head:
        scores = (logits.sigmoid() * head["bbox_ctrness"].float().sigmoid()).sqrt().amax(2)
    elif _has_background(detector):
        scores = logits.softmax(2)[..., 1:].amax(2)
    else:
        scores = logits.sigmoid().amax(2)
    return boxes, list(scores.cpu())


def _has_background(detector: nn.Module) -> bool:
    from torchvision.models.detection.ssd import SSD

    return isinstance(detector, SSD)


def _clipped(boxes: Float[Tensor, "a 4"], size: tuple[int, int]) -> Float[Tensor, "a 4"]:
    """Clip boxes to the borders of an image of height and width `size`."""
    limits = torch.tensor([size[1], size[0]]).repeat(2)
    return boxes.clamp(min=0).minimum(limits.to(boxes))


def _carried(
    image: int, detections: Any, boxes: Float[Tensor, "a 4"], levels: Int[Tensor, " a"], objects: int
) -> list[Detected]:
    """Find, for each detection, the anchor whose box overlaps it most; the stronger box wins ties."""
    from torchvision.ops import box_iou

    own, scores = detections["boxes"].detach().float().cpu()[:objects], detections["scores"].detach().cpu()[:objects]
    if not len(own):
        return []
    best = box_iou(own, boxes).nan_to_num().argmax(1)
    return [
        Detected(image, _tuple(box), float(score), int(levels[place]))
        for box, score, place in zip(own, scores, best, strict=True)
    ]


def _strongest(
    image: int, boxes: Float[Tensor, "a 4"], scores: Float[Tensor, " a"], levels: Int[Tensor, " a"], most: int
) -> list[Detected]:
    from torchvision.ops import nms

    kept = nms(boxes, scores, _OVERLAP)[:most]
    return [Detected(image, _tuple(boxes[place]), float(scores[place]), int(levels[place])) for place in kept]


def _reach_of_shapes(shapes: Sequence[Float[Tensor, "_ 2"]]) -> list[tuple[float, float]]:
    """Return, for each level, the smallest and largest box size that its anchors match best; (0, 0) if there is none.

    Anchors are dense, so only shapes are compared, as if each box were centered on an anchor. An anchor is the best
    match of a box of its own shape, so a level has no match only if all its anchors are outside the range of box sides.
    """
    doublings = math.log2(_LARGEST / _SMALLEST)
    sides = _SMALLEST * 2 ** torch.linspace(0, doublings, round(_STEPS * doublings) + 1, dtype=torch.float64)
    roots = torch.tensor(_RATIOS, dtype=torch.float64).sqrt()
    boxes = torch.stack([sides[:, None] * roots, sides[:, None] / roots], 2)  # sizes, ratios, (w, h)
    usable = [own[((own >= _SMALLEST) & (own <= _LARGEST)).all(1)].double().unique(dim=0) for own in shapes]
    overlaps = torch.stack([_best_overlap(boxes, own) for own in usable])
    mine: Bool[Tensor, "levels sizes"] = ((overlaps >= overlaps.amax(0) - 1e-9) & (overlaps >= _MATCHED)).any(2)
    found = []
    for own, best in zip(usable, mine, strict=True):
        reached = torch.cat([sides[best], own.prod(1).sqrt()])
        found.append((float(reached.amin()), float(reached.amax())) if len(own) else (0.0, 0.0))
    return found


def _best_overlap(boxes: Float[Tensor, "s r 2"], shapes: Float[Tensor, "a 2"]) -> Float[Tensor, "s r"]:
    """Return the largest intersection over union of each box with an anchor that has the same center."""
    if not len(shapes):
        return boxes.new_zeros(boxes.shape[:2])
    shared = torch.minimum(boxes[:, :, None], shapes).prod(3)
    union = boxes.prod(2)[:, :, None] + shapes.prod(1) - shared
    return (shared / union).amax(2)


def _reach_of_distances(shapes: Sequence[Float[Tensor, "_ 2"]]) -> list[tuple[float, float]]:
    """Return the smallest and largest box size for which each level of FCOS is responsible; (0, 0) if there is none.

    A location is responsible for boxes whose farthest side is 4 to 8 strides away. From the center of a box, this
    distance is half a side. The first level also takes smaller boxes, and the last level larger ones.
    """
    found = []
    for place, own in enumerate(shapes):
        stride = float(own[:, 0].amax()) if len(own) else 0.0
        low = 0.0 if place == 0 else 2 * _FCOS_RANGE[0] * stride
        high = math.inf if place == len(shapes) - 1 else 2 * _FCOS_RANGE[1] * stride
        is_there = len(own) and stride > 0 and low < _LARGEST and high > _SMALLEST
        found.append((low, min(high, _LARGEST)) if is_there else (0.0, 0.0))
    return found


def _sides(shapes: Float[Tensor, "a 2"]) -> tuple[float, float] | None:
    """Return the smallest and the largest size of anchors, the square root of the area; None without anchors."""
    sides = shapes.clamp(min=0).prod(1).sqrt()
    return (float(sides.amin()), float(sides.amax())) if len(sides) else None


def _tuple(box: Float[Tensor, "4"]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1

"""Find the pyramid in a detector, its feature maps, and the map on which the score of an object depends most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture import Call, Observer, holding_hooks, map_output, observe, select_layers
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.errors import InputError


@dataclass(frozen=True)
class LevelMap:
    """Statistics of one level; see `PyramidLevel`."""

    name: str
    shape: tuple[int, ...]
    activation: float
    anchors: int | None = None
    sizes: tuple[float, float] | None = None
    never: bool = False


@dataclass(frozen=True)
class PyramidMaps:
    """The name of the module that returns a pyramid, and the levels of the pyramid."""

    name: str
    levels: tuple[LevelMap, ...]


@dataclass(frozen=True)
class Detected:
    """A box in pixels of the original image, and the index of the level that carries it."""

    image: int
    box: tuple[float, float, float, float]
    score: float
    level: int


def levels_of(output: Any) -> list[tuple[str, Tensor]]:
    """Return the named maps of an output that is a pyramid (maps of the same images in several sizes), else []."""
    if isinstance(output, Mapping):
        found = [(str(name), value) for name, value in output.items()]
    elif isinstance(output, tuple | list):
        found = [(str(place), value) for place, value in enumerate(output)]
    else:
        return []
    maps = [value for _, value in found if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 4]
    same = len(maps) == len(found) > 1 and len({len(value) for value in maps}) == 1
    return found if same and len({value.shape[2:] for value in maps}) > 1 else []


def level_map(name: str, value: Tensor, **more: Any) -> LevelMap:
    """Return the statistics of a level from its map."""
    return LevelMap(name, tuple(value.shape[1:]), float(value.detach().float().abs().mean()), **more)


def call_detector(detector: nn.Module, images: Any) -> Any:
    """Call a detector on copies of images, which it may change in place."""
    return detector(map_output(lambda tensor: tensor.clone(), images))


class _Outputs(Observer):
    def __init__(self) -> None:
        self.found: list[str] = []

    def leave(self, call: Call) -> None:
        if levels_of(call.output) and call.name not in self.found:
            self.found.append(call.name)


def find_pyramid(detector: nn.Module, images: Any) -> str:
    """Return the name of the module that returns the pyramid.

    Raises:
        InputError: the detector has no pyramid.
    """
    parts = [module for name, module in detector.named_modules() if name]
    kind = type(detector).__name__
    outputs = _Outputs()
    if parts:
        with torch.no_grad(), observe(detector, select_layers(detector, parts), outputs):
            call_detector(detector, images)
    if not outputs.found:
        raise InputError(
            f"{kind} has no pyramid: none of its modules returned several feature maps (n, k, h, w) of different "
            "sizes; pass a detector with a pyramid, such as torchvision's RetinaNet, FCOS, SSD or Faster R-CNN with FPN"
        )
    name = outputs.found[0]
    around = [other for other in outputs.found if name.startswith(f"{other}.")]
    return min(around, key=len, default=name)


def by_gradient(
    detector: nn.Module, pyramid: str, images: Any, objects: int
) -> tuple[PyramidMaps, list[Detected], list[str]]:
    """Find, in any detector, the level on which each detection depends most, by gradient times activation."""
    cut: list[Tensor] = []
    names: list[str] = []

    def separate(module: nn.Module, args: Any, output: Any) -> Any:
        """Make each level a leaf of the graph, so that no level is reached through another."""
        if cut or not levels_of(output):
            return None
        names.extend(name for name, _ in levels_of(output))

        def leaf(tensor: Tensor) -> Tensor:
            cut.append(tensor.detach().requires_grad_())
            return cut[-1].clone()

        return map_output(leaf, output)

    with torch.enable_grad(), holding_hooks() as attach:
        attach.after(detector.get_submodule(pyramid), separate)
        output = call_detector(detector, images)
        floating = [leaf for leaf in _tensors(output) if leaf.is_floating_point() and leaf.requires_grad]
        reached = _gradients(floating, cut)
        found, readable = list(_detections(output, cut, objects)), _is_detections(output)
    notes = (
        []
        if readable
        else ["The output has no boxes and scores, so no objects are listed; levels are judged by gradients."]
    )
    judged = any(leaf.numel() for leaf in floating)
    if not judged:
        notes.append("The detector returned no detection with a gradient, so no level is judged.")
    levels = [
        level_map(name, value, never=judged and not strength)
        for name, value, strength in zip(names, cut, reached, strict=True)
    ]
    return PyramidMaps(pyramid, tuple(levels)), found, notes


def _detections(output: Any, levels: list[Tensor], objects: int) -> Iterator[Detected]:
    if not _is_detections(output):
        return
    for image, own in enumerate(output):
        order = own["scores"].detach().argsort(descending=True)[:objects].tolist()
        for place in order:
            strengths = _gradients([own["scores"][place]], levels)
            if any(strengths):
                box = [float(value) for value in own["boxes"][place].detach()]
                level = max(range(len(strengths)), key=strengths.__getitem__)
                yield Detected(image, (box[0], box[1], box[2], box[3]), float(own["scores"][place].detach()), level)


def _is_detections(output: Any) -> bool:
    if not isinstance(output, tuple | list) or not output:
        return False
    return all(
        isinstance(own, Mapping) and isinstance(own.get("boxes"), Tensor) and isinstance(own.get("scores"), Tensor)
        for own in output
    )


def _gradients(outputs: list[Tensor], levels: list[Tensor]) -> list[float]:
    """Return the sum of |gradient x activation| at each level; 0 for levels that do not affect the outputs."""
    total = [leaf.float().sum() for leaf in outputs if leaf.requires_grad]
    if not total:
        return [0.0] * len(levels)
    found = torch.autograd.grad(torch.stack(total).sum(), levels, allow_unused=True, retain_graph=True)
    return [
        0.0 if own is None else float((own * value.detach()).abs().sum())
        for own, value in zip(found, levels, strict=True)
    ]


def _tensors(output: Any) -> list[Tensor]:
    leaves = [leaf for _, leaf in named_leaves("", output)]
    return [leaf for one in leaves for leaf in tree_leaves(one) if isinstance(leaf, Tensor)]

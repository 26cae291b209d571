"""Which architectures are explained without any setting: automatic layer, shape of its map, trace left, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from gradcam_kit import GradCAM
from gradcam_kit.targets import DetectionTarget, SegmentationTarget

_SIDE = 96
# One small architecture of each family that timm knows under the first part of the name.
_SMALLEST = ("atto", "femto", "pico", "nano", "xxs", "xxt", "tiny", "xs", "s0", "b0", "_s", "small", "18", "26", "50")


@dataclass(frozen=True)
class Case:
    """An architecture, how it is built, and what is explained; `sizes` are the image sizes to try, small ones first."""

    name: str
    build: Callable[[], nn.Module]
    sizes: tuple[tuple[int, ...], ...]
    targets: Any = None


@dataclass(frozen=True)
class Outcome:
    """What happened; `failure` is empty where a finite map that varies was made and nothing was left behind."""

    name: str
    layer: str
    shape: tuple[int, ...]
    seconds: float
    failure: str


def torchvision_cases() -> Iterator[Case]:
    """All classification, segmentation, detection and video architectures of torchvision."""
    for name in torchvision.models.list_models(module=torchvision.models):
        side = 224 if name.startswith(("vit", "maxvit", "inception")) else _SIDE
        side = 518 if name == "vit_h_14" else side
        yield Case(f"torchvision:{name}", _torchvision(name), ((side, side),))
    for name in torchvision.models.list_models(module=torchvision.models.segmentation):
        yield Case(
            f"torchvision:{name}",
            _torchvision(name),
            ((_SIDE, _SIDE),),
            SegmentationTarget(torch.ones(_SIDE, _SIDE), 1),
        )
    for name in torchvision.models.list_models(module=torchvision.models.detection):
        target = DetectionTarget([8.0, 8.0, 88.0, 88.0], iou=1e-6, required=False)
        yield Case(f"torchvision:{name}", _torchvision(name), ((_SIDE, _SIDE),), target)
    for name in torchvision.models.list_models(module=torchvision.models.video):
        yield Case(f"torchvision:{name}", _torchvision(name), ((16, 224, 224) if "mvit" in name else (8, 64, 64),))


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        backbone: dict[str, Any] = (
            {} if "." in name or not hasattr(torchvision.models.detection, name) else {"weights_backbone": None}
        )
        if hasattr(torchvision.models.segmentation, name):
            backbone = {"weights_backbone": None}
        if hasattr(torchvision.models.detection, name):
            backbone["box_score_thresh" if "rcnn" in name else "score_thresh"] = 0.0
        model: nn.Module = torchvision.models.get_model(name, weights=None, **backbone)
        return model

    return build


def timm_cases(count: int) -> Iterator[Case]:
    """At least `count` timm architectures: one small one per family, then more of the largest families."""
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(name.partition("_")[0].rstrip("0123456789"), []).append(name)
    chosen = [min(names, key=_cost) for names in families.values()]
    others = sorted((name for names in families.values() for name in names if name not in chosen), key=_cost)
    for name in sorted([*chosen, *others[: max(0, count - len(chosen))]]):
        yield _timm(timm, name)


def _cost(name: str) -> tuple[int, int]:
    ranks = [rank for rank, part in enumerate(_SMALLEST) if part in name]
    return (min(ranks) if ranks else len(_SMALLEST), len(name))


def _timm(timm: Any, name: str) -> Case:
    size = timm.models.get_pretrained_cfg(name)
    fixed = tuple(size.input_size[1:]) if size is not None else (224, 224)
    flexible = size is None or not getattr(size, "fixed_input_size", False)
    small = ((128, 128),) if flexible and max(fixed) > 128 else ()
    return Case(f"timm:{name}", lambda: timm.create_model(name, pretrained=False), (*small, fixed))


def explain(case: Case) -> Outcome:
    """Explain two seeded random images with the automatic layer, at the first size that the architecture takes."""
    for size in case.sizes:
        outcome = _explain(case, size)
        if not outcome.failure:
            break
    return outcome


def _explain(case: Case, size: tuple[int, ...]) -> Outcome:
    start = time.perf_counter()
    layer, failure = "", ""
    shape: tuple[int, ...] = ()
    try:
        torch.manual_seed(0)
        model = case.build().eval()
        _wake_heads(model)
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
        before = _trace(model)
        explanation = GradCAM(model).explain(images, case.targets)
        [layer] = explanation.layers
        saliency = explanation.saliency[layer]
        shape = tuple(saliency.shape[1:])
        failure = _fault(saliency, explanation.heatmaps) or ("" if _trace(model) == before else "left a trace")
    except Exception as error:  # a failure is a row of the matrix
        failure = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    return Outcome(case.name, layer, shape, round(time.perf_counter() - start, 2), failure)


def _wake_heads(model: nn.Module) -> None:
    """Give weights that start as zeros, as many heads do, small random values: zeros stop every gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not bool(parameter.any()):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _fault(saliency: Tensor, heatmaps: Tensor) -> str:
    if not torch.isfinite(heatmaps).all():
        return "not finite"
    flat = saliency.flatten(1)
    return "constant map" if bool((flat.amax(1) == flat.amin(1)).any()) else ""


def _trace(model: nn.Module) -> list[object]:
    modules = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return [modules, [(p.requires_grad, p.grad is None) for p in model.parameters()], torch.initial_seed()]

"""Time other libraries on the same work, interleaved with ours, and find the largest difference of heatmaps."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Run, SkippedError, Work, interleave, peak_growth
from benchmarks.options import Device, Limit, Out, Quick, Rounds, Threads, device_of
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit import METHODS
from gradcam_kit.functional import normalize, upsample

Case = dict[str, str | int]

OURS = "gradcam_kit"
GRAD_CAM, TORCH_CAM, CAPTUM = "pytorch-grad-cam", "torch-cam", "captum"
CHUNK = 16
"""Number of rows in one forward pass of a perturbation method, for all libraries."""

_CLASSES = {
    GRAD_CAM: {
        "grad-cam": "GradCAM",
        "grad-cam++": "GradCAMPlusPlus",
        "hires-cam": "HiResCAM",
        "xgrad-cam": "XGradCAM",
        "layer-cam": "LayerCAM",
        "eigen-cam": "EigenCAM",
        "score-cam": "ScoreCAM",
        "ablation-cam": "AblationCAM",
    },
    TORCH_CAM: {
        "grad-cam": "GradCAM",
        "grad-cam++": "GradCAMpp",
        "xgrad-cam": "XGradCAM",
        "layer-cam": "LayerCAM",
        "score-cam": "ScoreCAM",
    },
    CAPTUM: {"grad-cam": "LayerGradCam"},
}

NOTES = {
    (
        GRAD_CAM,
        "grad-cam++",
    ): "Equation 19 with 1e-6 added to its denominator, a large number compared with small gradients",
    (GRAD_CAM, "eigen-cam"): "centers the activations; the sign of its component is left to the solver",
    (GRAD_CAM, "score-cam"): "masks upsampled with aligned corners; 1e-8 added to their range",
    (
        GRAD_CAM,
        "ablation-cam",
    ): "replaces a channel by its minimum - 1e7 where that is not 0; divides by the signed score",
    (TORCH_CAM, "grad-cam++"): "its division is lost (applied to a copy), which leaves the sum of ReLU(gradient)^3",
    (TORCH_CAM, "score-cam"): "masks normalized before they are upsampled",
}
"""Known deviations of other libraries from the formula of the paper, which make the heatmaps differ."""


@dataclass(frozen=True)
class Group:
    """Methods that are compared on one model, batch and layer."""

    model: str
    batch: int
    methods: tuple[str, ...]
    layer: str = "layer4"
    side: int = 224
    earlier: str = ""
    """A layer where formulas that agree at the last layer differ; maps are also compared there, in float64, untimed."""


GROUPS = (
    Group("resnet50", 16, ("grad-cam", "grad-cam++", "hires-cam", "xgrad-cam", "layer-cam"), earlier="layer3"),
    Group("resnet18", 16, ("eigen-cam",)),
    Group("resnet18", 1, ("score-cam", "ablation-cam")),
)
MEMORY = (Group("resnet50", 16, ("grad-cam",)), Group("resnet18", 1, ("score-cam",)))
QUICK = (Group("resnet18", 1, ("grad-cam", "layer-cam"), side=64, earlier="layer3"),)


def run(
    device: Device = "auto",
    rounds: Rounds = 5,
    limit: Limit = 60.0,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Compare with pytorch-grad-cam, torch-cam and captum (extra `peers`); a missing library is skipped."""
    device = device_of(device)
    groups, memory, rounds = (QUICK, (), 1) if quick else (GROUPS, MEMORY, rounds)
    times = (row for group in groups for row in time_rows(group, device, rounds, limit))
    rows = chain(times, (row for group in memory for row in memory_rows(group, device)))
    settings = {"seed": SEED, "rounds": rounds, "limit": limit, "chunk": CHUNK}
    record("peers", device, rows, threads=threads, out=out, quick=quick, **settings)


def peers_of(method: str) -> list[str]:
    """Return the libraries that have a method."""
    return [library for library, classes in _CLASSES.items() if method in classes]


def time_rows(group: Group, device: str, rounds: int, limit: float) -> Iterator[Row]:
    """Yield a row per other library: our time divided by its time, and the largest difference of the heatmaps."""
    for method in group.methods:
        measured = partial(_compared, group, method, device, rounds, limit)
        yield from attempt({**_case(group, method, device), "peer": "all"}, measured)


def _compared(group: Group, method: str, device: str, rounds: int, limit: float) -> Iterator[Row]:
    model, images = build_model(group.model, device), build_images(group.batch, device, side=group.side)
    with torch.inference_mode():
        classes = model(images).argmax(1).tolist()
    works = {library: _work(library, method, model, group.layer, images, classes) for library in _all(method)}
    runs = interleave(works, rounds, limit)
    for library in peers_of(method):
        case = {**_case(group, method, device), "peer": library}
        yield from attempt(case, partial(_beside, group, case, runs, images, classes[:2]))


def _beside(group: Group, case: Case, runs: Mapping[str, Run], images: Tensor, classes: list[int]) -> list[Row]:
    library, method = str(case["peer"]), str(case["method"])
    ours, theirs = runs[OURS], runs[library]
    if skipped := theirs.skipped or ours.skipped:
        return [Row(case, skipped=skipped)]
    figures = {
        "seconds": ours.seconds,
        "peer_seconds": theirs.seconds,
        "ratio": ours.over(theirs),
        "difference": _largest_difference(ours, theirs, images),
    }
    if earlier := _difference_earlier(group, library, method, str(case["device"]), classes):
        figures["difference_earlier"] = earlier
    return [Row(case, figures, beside=library, note=NOTES.get((library, method), ""))]


def _difference_earlier(group: Group, library: str, method: str, device: str, classes: list[int]) -> Figure | None:
    """Return the largest difference at the earlier layer, in float64, so that rounding contributes little."""
    if not group.earlier:
        return None
    model = build_model(group.model, device, torch.float64)
    images = build_images(len(classes), device, torch.float64, group.side)
    works = {name: _work(name, method, model, group.earlier, images, classes) for name in (OURS, library)}
    runs = interleave(works, 0)
    failed = any(run.skipped for run in runs.values())
    return None if failed else _largest_difference(runs[OURS], runs[library], images)


def memory_rows(group: Group, device: str) -> Iterator[Row]:
    """Yield the growth of the peak memory of a fresh process, for our library and each other library."""
    for method in group.methods:
        for library in _all(method):
            case = {**_case(group, method, device), "peer": library, "what": "memory"}
            yield from attempt(case, partial(_memory_row, group, case))


def _memory_row(group: Group, case: Case) -> list[Row]:
    library, method, device = (str(case[name]) for name in ("peer", "method", "device"))
    growth = peak_growth(device, peer_work, library, method, group.model, group.layer, group.batch, device)
    return [Row(case, {"peak_mb": growth})]


def _all(method: str) -> list[str]:
    return [OURS, *peers_of(method)]


def _case(group: Group, method: str, device: str) -> Case:
    return {"method": method, "model": group.model, "batch": group.batch, "layer": group.layer, "device": device}


def peer_work(library: str, method: str, model: str, layer: str, batch: int, device: str) -> Work:
    """Return a method of a library, prepared in the process that runs it."""
    return _work(library, method, build_model(model, device), layer, build_images(batch, device), [0] * batch)


def _work(library: str, method: str, model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> Work:
    """Return a call as a user of the library would write it, in which hooks are registered and removed."""
    build = {OURS: _ours, GRAD_CAM: _pytorch_grad_cam, TORCH_CAM: _torch_cam, CAPTUM: _captum}[library]

    def work() -> Any:
        return build(method, model, layer, images, classes)

    return work


def _ours(method: str, model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> Tensor:
    return METHODS[method](model, layer, batch_size=CHUNK)(images, classes)


def _pytorch_grad_cam(method: str, model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> Any:
    """Return heatmaps at the size of the images, as an array."""
    library = installed("pytorch_grad_cam", "grad-cam")
    targets = [library.utils.model_targets.ClassifierOutputTarget(index) for index in classes]
    cam = getattr(library, _CLASSES[GRAD_CAM][method])(model=model, target_layers=[model.get_submodule(layer)])
    cam.batch_size = CHUNK
    with cam, contextlib.redirect_stderr(io.StringIO()):  # hide progress bars
        return cam(input_tensor=images, targets=targets)


def _torch_cam(method: str, model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> Tensor:
    """Return normalized maps at the layer's resolution, which is less work, because nothing is upsampled."""
    library = installed("torchcam.methods", "torchcam")
    options = {"batch_size": CHUNK} if method == "score-cam" else {}
    with getattr(library, _CLASSES[TORCH_CAM][method])(model, layer, **options) as cam:
        if method == "score-cam":
            with torch.inference_mode():
                scores = model(images)
        else:
            scores = model(images)
        maps: Tensor = cam(classes, scores)[0]
        return maps


def _captum(method: str, model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> Tensor:
    """Return ReLU maps at the layer's resolution, which is less work: they are not normalized or upsampled."""
    library = installed("captum.attr", "captum")
    cam = getattr(library, _CLASSES[CAPTUM][method])(model, model.get_submodule(layer))
    target = torch.tensor(classes, device=images.device)
    maps: Tensor = cam.attribute(images, target=target, relu_attributions=True)
    return maps[:, 0].detach()


def installed(module: str, package: str | None = None) -> Any:
    """Return a module of another library.

    Raises:
        SkippedError: the library is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise SkippedError(f"{package or module} is not installed: pip install -e '.[peers]'") from error


def _largest_difference(ours: Run, theirs: Run, images: Tensor) -> Figure:
    """Return the largest difference of heatmaps in [0, 1]; our code normalizes and upsamples the other maps."""
    maps = torch.as_tensor(theirs.result).float().to(images.device)
    heatmaps = normalize(upsample(normalize(maps.clamp(min=0)), images.shape[2:]))
    largest = float((heatmaps - ours.result).abs().max())
    return Figure(largest, largest, largest)

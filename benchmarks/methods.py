"""Measure every method on many models: time per image, ratio to a plain forward pass, passes, peak memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Run, Work, interleave, peak_growth, within
from benchmarks.options import Device, Out, Quick, Rounds, Threads, device_of
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import MODELS, SEED, build_images, build_model, forward, forward_work
from gradcam_kit import METHODS, GradCAM, GradCamKitError
from gradcam_kit.types import LayerChoice

Case = dict[str, str | int]

FORWARD, ONCE = "plain forward", "timed once"
SOME = ("grad-cam", "eigen-cam", "refine-cam", "full-grad")
"""A few methods of different cost, for cases that would take too long with all methods."""

DTYPES = ("float32", "bfloat16", "float16")
CHUNK = 8
"""Number of rows in one forward pass of a perturbation method."""

LIMIT = 3.0
"""Time limit of one call in seconds. A longer call is skipped, or timed only once if its plan has a higher limit."""


@dataclass(frozen=True)
class Plan:
    """The combinations of models, methods, batch sizes and dtypes to measure.

    Attributes:
        models: names of torchvision models.
        methods: names of methods.
        batches: numbers of images in a batch.
        dtypes: names of dtypes, of those in `DTYPES`.
        side: height and width of the images in pixels.
        times: measure times and passes.
        memory: measure the peak memory.
        limit: time limit of one call in seconds; `--limit` replaces it.
    """

    models: tuple[str, ...] = ("resnet50",)
    methods: tuple[str, ...] = tuple(METHODS)
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("float32",)
    side: int = 224
    times: bool = True
    memory: bool = False
    limit: float = LIMIT


_LIMITS = {"mobilenet_v3_large": 200.0, "resnet18": 30.0, "efficientnet_b0": 30.0}
"""Time limits in seconds for fast models, high enough for Score-CAM, and on the fastest model for SS-CAM and IS-CAM."""

DEFAULT: tuple[Plan, ...] = (
    *(Plan(models=(model,), limit=_LIMITS.get(model, LIMIT)) for model in MODELS),
    Plan(methods=SOME, batches=(2, 4, 8, 16)),
    Plan(methods=SOME, batches=(16,), dtypes=("bfloat16",)),
    Plan(batches=(4,), times=False, memory=True),
)
"""All methods on all models for one image; on one model, also larger batches, half precision and peak memory."""

QUICK = (Plan(models=("resnet18",), methods=("grad-cam", "attention-rollout"), side=64, memory=True, limit=0.5),)


def run(
    model: Annotated[list[str] | None, typer.Option(help="name of a torchvision model; can be repeated")] = None,
    method: Annotated[list[str] | None, typer.Option(help="name of a method; can be repeated")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="number of images in a batch; can be repeated")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=", ".join(DTYPES) + "; can be repeated")] = None,
    memory: Annotated[bool, typer.Option(help="also measure the peak memory of each chosen case")] = False,
    device: Device = "auto",
    rounds: Rounds = 3,
    limit: Annotated[
        float | None,
        typer.Option(help=f"time limit of one call in seconds; default: {LIMIT:g}, in a full run more on fast models"),
    ] = None,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Measure every method on many models; named models, methods, batches or dtypes replace the default."""
    device = device_of(device)
    plans = DEFAULT
    if model or method or batch or dtype or memory:
        chosen = Plan(
            models=tuple(model or ["resnet50"]),
            methods=tuple(method or METHODS),
            batches=tuple(batch or [1]),
            dtypes=tuple(dtype or ["float32"]),
            memory=memory,
        )
        plans = (checked(chosen),)
    if quick:
        plans, rounds = QUICK, 1
    if limit is not None:
        plans = tuple(replace(plan, limit=limit) for plan in plans)
    limits = {model: plan.limit for plan in reversed(plans) for model in plan.models}
    rows = (row for plan in plans for row in measured(plan, device, rounds))
    settings = {"seed": SEED, "rounds": rounds, "limit": limits, "chunk": CHUNK}
    record("methods", device, rows, threads=threads, out=out, quick=quick, **settings)


def checked(plan: Plan) -> Plan:
    """Return the plan after checking that all its names exist.

    Raises:
        typer.BadParameter: a name does not exist.
    """
    from torchvision.models import list_models

    for kind, named, known in (
        ("model", plan.models, list_models()),
        ("method", plan.methods, list(METHODS)),
        ("dtype", plan.dtypes, list(DTYPES)),
    ):
        for name in named:
            if name not in known:
                raise typer.BadParameter(f"there is no {kind} {name!r}; known are {', '.join(known)}")
    return plan


def measured(plan: Plan, device: str, rounds: int) -> Iterator[Row]:
    """Yield the rows of a plan."""
    for model in plan.models:
        for dtype in plan.dtypes:
            for batch in plan.batches:
                case: Case = {
                    "model": model,
                    "batch": batch,
                    "side": plan.side,
                    "dtype": dtype,
                    "device": device,
                }
                if plan.times:
                    yield from attempt({**case, "method": FORWARD}, partial(_times, plan, case, rounds))
                if plan.memory:
                    own: Case = {**case, "method": FORWARD, "what": "memory"}
                    yield from attempt(own, partial(_memory, plan, case))


def _times(plan: Plan, case: Case, rounds: int) -> Iterator[Row]:
    runs = interleave(_works(plan, case), rounds, plan.limit, long=LIMIT)
    for method, timed in runs.items():
        yield _row({**case, "method": method}, timed, runs[FORWARD], rounds)


def _works(plan: Plan, case: Case) -> dict[str, Work]:
    device, dtype, batch = str(case["device"]), getattr(torch, str(case["dtype"])), int(case["batch"])
    network, images = build_model(str(case["model"]), device, dtype), build_images(batch, device, dtype, plan.side)
    layers = Layers(network, images[:1])

    def work(method: str) -> Work:
        try:
            cam = METHODS[method](network, layers.of(method), batch_size=CHUNK)
        except GradCamKitError as error:
            return partial(_fail, error)
        return lambda: cam(images)

    return {FORWARD: forward(network, images), **{method: work(method) for method in plan.methods}}


def _fail(error: Exception) -> None:
    raise error


class Layers:
    """The automatic layers of a model, chosen once, because the passes for choosing them are not to be measured."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network, self.images = network, images
        self.known: dict[LayerChoice, list[str]] = {}

    def of(self, method: str) -> list[str] | None:
        """Return the automatic layers of a method; None if its layers are fixed."""
        choice = METHODS[method].layer_choice
        if choice.is_fixed:
            return None
        if choice not in self.known:
            chooser = GradCAM if choice is GradCAM.layer_choice else METHODS[method]
            self.known[choice] = list(chooser(self.network).explain(self.images).layers)
        return self.known[choice]


def _row(case: Case, timed: Run, baseline: Run, rounds: int) -> Row:
    if timed.skipped or baseline.skipped:
        return Row(case, skipped=timed.skipped or f"no plain forward pass to compare with: {baseline.skipped}")
    batch, beside = int(case["batch"]), "" if case["method"] == FORWARD else FORWARD
    figures = {
        "seconds_per_image": Figure.of(seconds / batch for seconds in timed.times),
        "ratio": timed.over(baseline),
        "passes": timed.passes(baseline),
    }
    often = min(len(timed.times), len(baseline.times)) == rounds
    return Row(case, figures, beside=beside, note="" if often else ONCE)


def _memory(plan: Plan, case: Case) -> Iterator[Row]:
    layers = Layers(build_model(str(case["model"])), build_images(1, side=plan.side))
    for method in (FORWARD, *plan.methods):
        own: Case = {**case, "method": method, "what": "memory"}
        yield from attempt(own, partial(_memory_row, own, layers, 4 * plan.limit))


def _memory_row(case: Case, layers: Layers, limit: float) -> list[Row]:
    method, device = str(case["method"]), str(case["device"])
    settings = tuple(case[name] for name in ("model", "batch", "device", "side", "dtype"))
    if method == FORWARD:
        growth = peak_growth(device, forward_work, *settings)
    else:
        growth = peak_growth(device, cam_work, method, layers.of(method), *settings, limit)
    return [Row(case, {"peak_mb": growth})]


def cam_work(
    method: str,
    layers: list[str] | None,
    model: str,
    batch: int,
    device: str = "cpu",
    side: int = 224,
    dtype: str = "float32",
    limit: float = float("inf"),
) -> Work:
    """Return a method with a time limit, prepared in the process that runs it."""
    precision = getattr(torch, dtype)
    cam = METHODS[method](build_model(model, device, precision), layers, batch_size=CHUNK)
    images = build_images(batch, device, precision, side)

    def work() -> object:
        with within(limit):
            return cam(images)

    return work

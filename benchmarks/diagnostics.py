"""Measure how much each tool slows down a training step, and how much memory ModelDiagnostics holds."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import SkippedError, reason
from benchmarks.options import Device, Out, Quick, Rounds, Threads, device_of
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model
from gradcam_kit.diagnostics import ModelDiagnostics, find_nonfinite

MODEL, PLAIN = "resnet18", "a plain training step"
CYCLE = 10
"""Number of steps in one measurement: parameters are measured in one of ten steps, and `every=10` observes one."""
FEW = 3
IN_TURN = "one pair of every tool in each round"

Block = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Tool:
    """A tool that observes or changes a training loop.

    Attributes:
        block: function that makes the context manager for a model and its optimizer. If the context manager yields a
            callable, it is called after each step.
        needs: the package that has to be installed for the tool; "" if it is part of torch or of this package.
        note: a remark for readers.
        steps: number of steps in one measurement; tools that do the same in every step need fewer.
        goal: maximum ratio to a plain step; None for tools without a goal, such as those of other projects.
    """

    block: Block
    needs: str = ""
    note: str = ""
    steps: int = CYCLE
    goal: float | None = None


@contextmanager
def _hooks(hook: Callable[[Tensor], Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.modules():
            if not list(module.children()):
                handle = module.register_forward_hook(lambda _module, _inputs, output: hook(output))
                stack.callback(handle.remove)
        yield


def _statistics_of_tutorials(output: Tensor) -> None:
    """Compute four statistics per output, and read each of them on the host immediately, as tutorials do."""
    output = output.detach()
    output.mean().item()
    output.std().item()
    output.abs().max().item()
    (output == 0).float().mean().item()


@contextmanager
def _transformers_debugger(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    debugger: Any = import_module("transformers.debug_utils").DebugUnderflowOverflow
    with contextlib.redirect_stdout(io.StringIO()):
        debugger(model)  # its hooks remain, on a copy of the model that is discarded
        yield


@contextmanager
def _wandb(log: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], object]]:
    wandb: Any = import_module("wandb")
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        try:
            run.watch(model, log=log, log_freq=1)
            yield lambda: run.log({"step": 1})
        finally:
            run.finish()
            wandb.teardown()  # stop the background service, so that it does not slow down the next tool


def _ours(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> AbstractContextManager[Any]:
    return ModelDiagnostics(model, optimizer=optimizer, **options)


TOOLS: Mapping[str, Tool] = {
    "empty hooks, all leaves": Tool(partial(_hooks, lambda output: None), goal=1.02),
    "ModelDiagnostics, all leaves": Tool(_ours, goal=1.25),
    "ModelDiagnostics, conv + linear": Tool(partial(_ours, layers=[nn.Conv2d, nn.Linear]), goal=1.12),
    "ModelDiagnostics, all leaves, every=10": Tool(partial(_ours, every=10), goal=1.05),
    # Fixed after eight processes on a quiet machine, whose medians were 1.04 to 1.09: reading every activation and
    # gradient once costs about 0.025, the hooks of modules and nodes as much.
    "find_nonfinite": Tool(lambda model, optimizer: find_nonfinite(model), goal=1.10),
    "hooks with .item(), all leaves": Tool(
        partial(_hooks, _statistics_of_tutorials), note="four numbers of each output; no gradients, no parameters"
    ),
    "anomaly mode": Tool(lambda model, optimizer: torch.autograd.detect_anomaly(check_nan=True)),
    "wandb.watch, log=all": Tool(partial(_wandb, "all"), "wandb", "offline, every step", FEW),
    "wandb.watch, log=gradients": Tool(partial(_wandb, "gradients"), "wandb", "offline, every step", FEW),
    "transformers' DebugUnderflowOverflow": Tool(_transformers_debugger, "transformers", "forward only", FEW),
}


def run(
    device: Device = "auto",
    rounds: Rounds = 9,
    batch: Annotated[int, typer.Option(help="number of images in a batch", min=2)] = 32,
    threads: Threads = 1,
    out: Out = None,
    quick: Quick = False,
    only: Annotated[
        str, typer.Option(help="measure only tools whose names contain this text; stored only with --out")
    ] = "",
) -> None:
    """Measure how much ModelDiagnostics, find_nonfinite and other tools slow down a training step."""
    device, side, cycle, windows = device_of(device), 64, CYCLE, 1000
    if quick:
        rounds, batch, side, cycle, windows = 1, 2, 32, 1, 20
    tools = {name: tool for name, tool in TOOLS.items() if only in name}
    rows = chain(
        attempt(_case("all"), partial(step_rows, tools, device, batch, side, rounds, cycle)) if tools else (),
        attempt({"model": "linear layers", "work": "memory"}, partial(memory_rows, windows))
        if only in "memory"
        else (),
    )
    settings = {"seed": SEED, "batch": batch, "rounds": rounds, "side": side, "steps": cycle, "order": IN_TURN}
    # with `only`, do not store: ratios that were measured under different loads do not belong in one table
    record("diagnostics", device, rows, threads=threads, out=out, quick=quick or bool(only), **settings)


def _case(name: str) -> dict[str, str]:
    return {"model": MODEL, "work": name}


def step_rows(tools: Mapping[str, Tool], device: str, batch: int, side: int, rounds: int, cycle: int) -> Iterator[Row]:
    """Yield a row per tool: the time of steps with the tool, divided by the time of the same number of plain steps.

    Every round measures one such pair for each tool, so that all tools meet the same load. The order of the tools and
    the order within a pair alternate from round to round. On a CPU, the time is the processor time of all threads,
    which other processes disturb least; on a GPU, it is wall time. A tool that fails is skipped from then on.
    """
    model = build_model(MODEL, device).train()
    images = build_images(batch, device, side=side)
    labels = torch.arange(batch, device=device) % 1000
    pairs: dict[str, list[dict[bool, float]]] = {name: [] for name in tools}
    loads: dict[str, list[float]] = {name: [] for name in tools}
    skipped: dict[str, str] = {}
    for number in range(rounds + 1):
        for name in [name for name in (tools if number % 2 else reversed(list(tools))) if name not in skipped]:
            tool, pair = tools[name], {}
            try:
                _check_installed(tool)
                for observed in (False, True) if number % 2 else (True, False):
                    own = copy.deepcopy(model)
                    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
                    block = tool.block(own, optimizer) if observed else contextlib.nullcontext()
                    pair[observed] = _seconds(own, optimizer, block, images, labels, min(cycle, tool.steps))
            except Exception as error:  # a tool that fails must not end the measurement of other tools
                skipped[name] = reason(error)
                continue
            if number:  # round 0 is a warm-up, which chooses kernels and fills caches
                pairs[name].append(pair)
                loads[name].append(os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"))
    for name, tool in tools.items():
        if name in skipped:
            yield Row(_case(name), skipped=skipped[name])
            continue
        figures = {
            "ratio": Figure.of(pair[True] / pair[False] for pair in pairs[name]),
            "plain_ms": Figure.of(1e3 * pair[False] for pair in pairs[name]),
            "observed_ms": Figure.of(1e3 * pair[True] for pair in pairs[name]),
            "load": Figure.of(loads[name]),
        }
        yield Row(_case(name), figures, beside=PLAIN, note=tool.note)


def _check_installed(tool: Tool) -> None:
    """Import the package of a tool.

    Raises:
        SkippedError: the package is not installed.
    """
    if tool.needs:
        try:
            import_module(tool.needs)
        except ImportError as error:
            raise SkippedError(f"{tool.needs} is not installed: pip install {tool.needs}") from error


def _seconds(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    block: AbstractContextManager[Any],
    images: Tensor,
    labels: Tensor,
    cycle: int,
) -> float:
    """Return the mean seconds of `cycle` steps in the block; entry, exit and a first step are not timed."""
    on_device = images.device.type != "cpu"
    clock = time.perf_counter if on_device else time.process_time
    with block as given:
        start = 0.0
        for number in range(cycle + 1):
            if number == 1:
                if on_device:
                    torch.get_device_module(images.device).synchronize()
                start = clock()
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if callable(given) and not isinstance(given, nn.Module):
                given()
        if on_device:
            torch.get_device_module(images.device).synchronize()
        return (clock() - start) / cycle


def memory_rows(windows: int) -> Iterator[Row]:
    """Yield the KiB that a running ModelDiagnostics holds per layer, after 0.1, 1 and 2 times the number of windows.

    This includes everything that Python, NumPy and torch hold for the block: histograms, histories, hooks and reserved
    space.
    """
    width = 64
    torch.manual_seed(SEED)
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(width, width), nn.ReLU())))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = build_images(1, side=width)[0, 0]

    def train() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    with _tracing(), ExitStack() as stack:
        train()
        before = held_bytes()
        stack.enter_context(ModelDiagnostics(model, optimizer=optimizer, window=1, features=0))
        for number in range(1, 2 * windows + 1):
            train()
            if number in (windows // 10, windows, 2 * windows):
                kept = (held_bytes() - before) / 1024 / len(list(model))
                case = {"model": "linear layers", "work": f"memory after {number} windows"}
                yield Row(case, {"kib_per_layer": Figure(kept, kept, kept)})


@contextmanager
def _tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def held_bytes() -> int:
    """Return the bytes of all tensors, and of all Python objects and arrays allocated since tracing began."""
    gc.collect()
    stored = [own.untyped_storage() for own in gc.get_objects() if issubclass(type(own), Tensor)]
    tensors = {storage.data_ptr(): storage.nbytes() for storage in stored}
    return int(tracemalloc.get_traced_memory()[0] + sum(tensors.values()))

"""Measure the cost of a tool: time the same step alternately with and without it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.options import positive_int


@dataclass(frozen=True)
class Overhead:
    """Seconds of a step with and without a tool; processor time on a CPU, wall time on a device.

    Attributes:
        ratio: the median over rounds of observed / plain.
        low: the smallest ratio of a round.
        high: the largest ratio of a round.
        plain: median seconds of a plain step.
        observed: median seconds of a step with the tool.
        rounds: number of measured pairs of steps.
    """

    ratio: float
    low: float
    high: float
    plain: float
    observed: float
    rounds: int

    def __str__(self) -> str:
        return (
            f"{self.ratio:.2f} x a plain step ({self.low:.2f} to {self.high:.2f}, {self.rounds} rounds, "
            f"{1e3 * self.plain:.1f} ms -> {1e3 * self.observed:.1f} ms)"
        )


def measure_overhead(
    tool: Callable[[nn.Module], AbstractContextManager[Any]],
    model: nn.Module,
    images: Any,
    *,
    step: Callable[[nn.Module, Any], Any] | None = None,
    rounds: int = 9,
) -> Overhead:
    """Compare the time of a step with a tool to the time of a plain step, on a copy of the model.

    Each round times both steps; the one timed first alternates between rounds.

    Args:
        tool: callable that takes the model and returns a context manager, such as `ModelDiagnostics`.
        model: the model to copy; the original is not changed.
        images: the input of the model; a tuple holds several arguments.
        step: the measured function `step(model, images)`; by default a forward pass, and a backward pass from the
            mean square of the output.
        rounds: number of measured pairs of steps, after one pair to warm up.

    Raises:
        OptionError: `rounds` is less than 1.

    Example:
        >>> from gradcam_kit.diagnostics import ModelDiagnostics
        >>> measure_overhead(ModelDiagnostics, nn.Linear(3, 2), torch.ones(4, 3), rounds=1).rounds
        1
    """
    rounds = positive_int("rounds", rounds)
    copied = copy.deepcopy(model)
    run = step or _training_step
    devices = {leaf.device for leaf in tree_leaves(images) if isinstance(leaf, Tensor)}
    on_host = all(device.type == "cpu" for device in devices)
    clock = time.process_time if on_host else time.perf_counter

    def seconds(observed: bool) -> float:
        copied.zero_grad()
        if not observed:
            start = clock()
            run(copied, images)
            return _wait(devices) or clock() - start
        with tool(copied):
            start = clock()
            run(copied, images)
            return _wait(devices) or clock() - start

    pairs = []
    for round_number in range(rounds + 1):
        order = (False, True) if round_number % 2 else (True, False)
        times = {observed: seconds(observed) for observed in order}
        pairs.append((times[False], times[True]))
    pairs = pairs[1:]
    ratios = [observed / max(plain, 1e-9) for plain, observed in pairs]
    return Overhead(
        median(ratios), min(ratios), max(ratios), median(plain for plain, _ in pairs),
        median(observed for _, observed in pairs), rounds,
    )  # fmt: skip


def _training_step(model: nn.Module, images: Any) -> None:
    output = model(*images) if isinstance(images, tuple) else model(images)
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if tensors:
        torch.stack([leaf.float().square().mean() for leaf in tensors]).sum().backward()


def _wait(devices: set[torch.device]) -> float:
    for device in devices:
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
    return 0.0

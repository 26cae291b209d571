"""Measure norms, gradients and updates of parameters around one `optimizer.step` in every ten observed steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradcam_kit.capture import Observation, Shard, flat_shards, is_spread, local_part, shard_of
from gradcam_kit.diagnostics.collecting import Collector
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import SAMPLE, stride_of, take_sample
from gradcam_kit.diagnostics.tracks import ParameterTrack

EVERY = 10
_MOST_NORMS = 64
_FRAMES = 16  # number of callers to inspect


class ParameterWatch:
    """Measures the parameters of a model before and after the steps of its optimizers."""

    def __init__(self, ledger: Ledger, model: nn.Module, optimizers: Sequence[Optimizer], collector: Collector) -> None:
        self.ledger, self.model, self.collector = ledger, model, collector
        self.optimizers = list(optimizers)
        self.next: dict[int, int] = {id(optimizer): 1 for optimizer in optimizers}
        self.flat = flat_shards(model)
        self.sampled: list[tuple[ParameterTrack, Tensor, int, Tensor]] = []
        owners = {id(own): name for name, module in model.named_modules() for own in module._parameters.values()}
        for name, parameter in model.named_parameters():
            track = ParameterTrack(name, owners.get(id(parameter), ""), parameter.ndim, parameter.requires_grad)
            ledger.parameters.setdefault(name, track)
        self.update_membership()

    def update_membership(self) -> None:
        """Record which parameters the optimizers hold, and which require gradients."""
        held = {id(own) for optimizer in self.optimizers for group in optimizer.param_groups for own in group["params"]}
        for name, parameter in self.model.named_parameters():
            track = self.ledger.parameters.get(name)
            if track is not None:
                track.trains = parameter.requires_grad
                track.optimized = id(parameter) in held if self.optimizers else None

    def _own(self, optimizer: Optimizer) -> list[tuple[ParameterTrack, Tensor]]:
        """Return the parameters of one optimizer; the first one also gets the parameters that no optimizer holds."""
        held = {id(own) for group in optimizer.param_groups for own in group["params"]}
        first = optimizer is self.optimizers[0]
        return [
            (self.ledger.parameters[name], parameter)
            for name, parameter in self.model.named_parameters()
            if name in self.ledger.parameters
            and (id(parameter) in held or (first and not self.ledger.parameters[name].optimized))
        ]

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Measure gradients and remember samples of the parameters."""
        self.sampled.clear()
        if self.ledger.steps < self.next[id(optimizer)]:
            return
        self.next[id(optimizer)] = self.ledger.steps - (self.ledger.steps - 1) % EVERY + EVERY
        self.update_membership()
        measured: list[tuple[ParameterTrack, Tensor, Tensor]] = []
        rates = _rates(optimizer)
        for track, parameter in self._own(optimizer):
            if track.trains:
                shard = shard_of(parameter) or self.flat.get(id(parameter))
                if shard is not None:
                    note_shard(track, parameter, shard, self.collector.observation)
            if not track.trains or not _is_plain(parameter):
                continue
            track.measured += 1
            track.rate, track.epsilon = rates.get(id(parameter), math.nan), torch.finfo(parameter.dtype).eps
            if parameter.grad is None:
                track.missing += 1
            elif _is_plain(parameter.grad):
                own = local_part(parameter.detach())
                measured.append((track, own, local_part(parameter.grad.detach())))
                if track.optimized:
                    stride = stride_of(tuple(own.shape), SAMPLE)
                    sample = take_sample(own, 0, stride)
                    self.sampled.append((track, parameter, stride, sample))
        self._norms(measured, by_gradient=isinstance(optimizer, torch.optim.SGD))
        self._alive_units()

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Compare the samples with the updated parameters."""
        for track, parameter, stride, before in self.sampled:
            change = take_sample(local_part(parameter.detach()), 0, stride) - before
            norms = torch.linalg.vector_norm(change.float()), torch.linalg.vector_norm(before.float())
            self.collector.scalars_of(before.device).add(_update(track), *norms)
        self.sampled.clear()
        self.ledger.optimizer_steps += 1

    def _norms(self, measured: list[tuple[ParameterTrack, Tensor, Tensor]], by_gradient: bool) -> None:
        squares: list[float] = []
        groups: dict[tuple[torch.device, torch.dtype, torch.dtype], list[tuple[ParameterTrack, Tensor, Tensor]]] = {}
        for one in measured:
            groups.setdefault((one[1].device, one[1].dtype, one[2].dtype), []).append(one)
        for (device, *_), own in groups.items():
            weights = torch._foreach_norm([_wide(weight) for _, weight, _ in own])
            gradients = torch._foreach_norm([_wide(gradient) for _, _, gradient in own])
            for (track, values, _), weight, gradient in zip(own, weights, gradients, strict=True):
                # Adam and similar optimizers move each value by about the learning rate, for gradients of any size.
                unit = None if by_gradient else math.sqrt(values.numel())
                self.collector.scalars_of(device).add(_norm(track, squares, unit), weight, gradient)
        if measured:
            step = self.ledger.steps

            def total() -> None:
                norms = self.ledger.gradient_norms
                norms.append((step, math.sqrt(sum(squares))))
                del norms[:-_MOST_NORMS]

            # Readers run device after device, each in order, so the last reader of the last device sees all squares.
            self.collector.scalars_of(next(reversed(self.collector.scalars))).add(total)

    def _alive_units(self) -> None:
        """Record which units have a nonzero gradient at their own weights or bias, which proves that they are alive."""
        for live in self.collector.live.values():
            module = live.module()
            if module is None:
                continue
            weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
            if weight is None or bias is None or weight.grad is None or bias.grad is None or bias.ndim != 1:
                continue
            if not _is_plain(weight.grad) or len(weight) != len(bias) or is_spread(weight):
                continue
            alive = (weight.grad.detach().reshape(len(weight), -1) != 0).any(1) | (bias.grad.detach() != 0)
            live.alive = alive if live.alive is None else live.alive | alive
            live.track.open.measured += 1


def note_shard(track: ParameterTrack, parameter: Tensor, shard: Shard, observation: Observation | None) -> None:
    """Record which part of a sharded parameter is measured, and note that measurements are local."""
    track.shards, track.parts = frozenset([shard.place]), shard.parts
    if not local_part(parameter).numel():
        track.norm = track.gradient_norm = track.reach = 0.0
    if observation is not None:
        observation.note(
            "Parameters are spread over processes, and each process measures its own shards: norms and updates are "
            "local until the ranks are joined by merge()."
        )


def note_scale(ledger: Ledger, observation: Observation) -> None:
    """Add a note, once, that gradients at outputs carry the scale of a `GradScaler`, if a scaler calls this step."""
    if ledger.scaled or ledger.optimizer_steps:
        return
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            return
        if frame.f_globals.get("__name__") == "torch.amp.grad_scaler":
            observation.note(
                "A GradScaler scales the loss, so gradients at outputs are reported with its scale, but gradients of "
                "parameters without it. Pass ModelDiagnostics(..., scaler=scaler) to remove the scale."
            )
            return
        frame = frame.f_back


def after_closure(args: tuple[Any, ...], kwargs: dict[str, Any], measure: Callable[[], None]) -> Any:
    """Call `measure` before an optimizer's update: immediately, or after the first run of its closure.

    Returns:
        The arguments of the step with a closure that measures; None where the step has no closure.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        measure()
        return None
    is_measured = False

    def measuring() -> Any:
        nonlocal is_measured
        result = closure()
        if not is_measured:
            is_measured = True
            measure()
        return result

    if "closure" in kwargs:
        return args, {**kwargs, "closure": measuring}
    return (args[0], measuring, *args[2:]), kwargs


def _rates(optimizer: Optimizer) -> dict[int, float]:
    """Return the learning rate of each parameter, except rates on a device, which cannot be read without waiting."""
    return {
        id(own): float(group["lr"])
        for group in optimizer.param_groups
        if "lr" in group and not (isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu")
        for own in group["params"]
    }


def _norm(track: ParameterTrack, squares: list[float], unit: float | None) -> Callable[[float, float], None]:
    rate = track.rate

    def read(norm: float, gradient: float) -> None:
        track.norm, track.gradient_norm = norm, gradient
        track.reach = rate * (gradient if unit is None else unit)
        track.zero += gradient == 0
        squares.append(gradient * gradient)

    return read


def _update(track: ParameterTrack) -> Callable[[float, float], None]:
    def read(change: float, before: float) -> None:
        if before > 0 or change == 0:
            ratio = change / before if before > 0 else 0.0
            track.update.add(ratio)
            track.updates.append(ratio)
            del track.updates[:-_MOST_NORMS]

    return read


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.is_floating_point()
        and not tensor.is_meta
        and local_part(tensor).numel() > 0
    )

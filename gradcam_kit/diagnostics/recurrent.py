"""Recurrent layers step by step: every gate and state, how far back they remember, and gates that do not move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gradcam_kit.capture import (
    RecurrentCall,
    check_called,
    check_observable,
    passing,
    recurrent_layers,
    run_recurrent,
    weights_version,
)
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.diagnostics.maths.gates import DirectionTrace, RecurrentTrace, recurrent_trace
from gradcam_kit.diagnostics.maths.memory import gate_memory, gradient_memory, half_life
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.verdicts.gates import gate_findings
from gradcam_kit.errors import CaptureError, OptionError, UnknownNameError, did_you_mean
from gradcam_kit.options import positive_int, whole

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOLERANCE_TF32 = 5e-3  # cuDNN rounds the factors of float32 products unless it is told not to


@dataclass(frozen=True, eq=False)
class Memory:
    """How far back one direction of a layer remembers.

    Attributes:
        gates: steps after which a state has fallen to 1/e by the mean forget (LSTM) or update gate (GRU), per unit;
            None for a plain RNN.
        gradients: norm of d last state / d input at each step.
        half_life: steps back from the last one until this norm has halved; infinite where it never does.
    """

    gates: Float[Tensor, " h"] | None
    gradients: Float[Tensor, "n t"]
    half_life: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class CallTrace:
    """One call of a recurrent module; `gates`, `hidden` and `cell` are of layer 0 forward, all is batch first."""

    call: RecurrentCall
    steps: RecurrentTrace
    version: tuple[tuple[int, int], ...]

    @property
    def layers(self) -> int:
        """How many layers the module has."""
        return len(self.steps.directions)

    @property
    def bidirectional(self) -> bool:
        """Whether each layer also runs in reverse."""
        return len(self.steps.directions[0]) == 2

    @property
    def gates(self) -> Mapping[str, Float[Tensor, "n t h"]]:
        """By name: input, forget, cell and output of an LSTM; reset, update and new of a GRU; none of an RNN."""
        return self.at(0).gates

    @property
    def hidden(self) -> Float[Tensor, "n t p"]:
        """The state after each step."""
        return self.at(0).hidden

    @property
    def cell(self) -> Float[Tensor, "n t h"] | None:
        """The cell state of an LSTM after each step."""
        return self.at(0).cell

    @property
    def output(self) -> Float[Tensor, "n t p"]:
        """Of the last layer, both directions side by side; zero past the length of a packed sequence."""
        return self.steps.output

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """Steps of each sample; past them gates are undefined and states stay as they are."""
        return self.steps.lengths

    @property
    def active(self) -> Bool[Tensor, "n t"]:
        """The steps that exist."""
        t = self.steps.output.shape[1]
        return torch.arange(t, device=self.lengths.device) < self.lengths[:, None]

    def at(self, layer: int, reverse: bool = False) -> DirectionTrace:
        """Return gates and states of one layer in one direction.

        Raises:
            OptionError: a layer or direction that the module does not have.
        """
        if not -self.layers <= whole("layer", layer) < self.layers:
            raise OptionError(f"layer is {layer}; {self.call.name!r} has {self.layers} layers, counted from 0")
        if reverse and not self.bidirectional:
            raise OptionError(f"reverse is True; {self.call.name!r} runs forward alone (bidirectional=False)")
        return self.steps.directions[layer][int(reverse)]

    def memory(self, layer: int = 0, reverse: bool = False, *, probes: int = 16, seed: int = 0) -> Memory:
        """Measure how far back one direction of a layer remembers, by its gates and by gradients.

        Args:
            layer: counted from 0.
            reverse: the other direction.
            probes: backward passes; from as many as there are units on, the norm of the gradient is exact, else it is
                estimated along random directions.
            seed: of these directions.

        Raises:
            CaptureError: the weights have changed since the trace.
        """
        own, call = self.at(layer, reverse), self.call
        positive_int("probes", probes)
        if weights_version(call.module) != self.version:
            raise CaptureError(f"the weights of {call.name!r} have changed since the trace; call trace_recurrent again")
        with passing(call.module, call.inputs):
            norms = gradient_memory(
                call.module, call.inputs, call.state, layer % self.layers, reverse, probes, seed
            ).detach()
        norms = norms * self.active
        return Memory(gate_memory(dict(own.gates), self.active), norms, half_life(norms, self.active, reverse))


class LayerTrace(CallTrace):
    """A recurrent module; what is asked of it is answered for its last call. `calls` has all of them, in order."""

    def __init__(self, calls: list[CallTrace]) -> None:
        super().__init__(calls[-1].call, calls[-1].steps, calls[-1].version)
        object.__setattr__(self, "calls", tuple(calls))

    calls: tuple[CallTrace, ...]


class Traces(Mapping[str, LayerTrace]):
    """Module name -> its trace, in the order in which the modules ran first. A model that is one such module is "".

    Attributes:
        never_ran: recurrent modules that the model did not call.
    """

    def __init__(self, layers: dict[str, LayerTrace], never_ran: tuple[str, ...], root: str, limits: Thresholds) -> None:
        self.layers, self.never_ran, self._root, self.thresholds = layers, never_ran, root, limits

    def __getitem__(self, name: str) -> LayerTrace:
        if name == "" and self._root in self.layers:
            return self.layers[self._root]
        if name in self.never_ran:
            raise CaptureError(f"layer {name!r} did not run; the model holds it without calling it")
        if name not in self.layers:
            known = ", ".join(self.layers)
            hint = did_you_mean(name, self.layers) or f"; traced are {known}"
            raise UnknownNameError(f"no recurrent layer {name!r} was traced{hint}")
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Traces({', '.join(f'{name} {tuple(own.output.shape)}' for name, own in self.items())})"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Gates that do not move, gates and states at their ends."""
        found = [
            finding
            for name, trace in self.items()
            for layer, ways in enumerate(trace.steps.directions)
            for reverse, way in enumerate(ways)
            for finding in gate_findings(
                name,
                _where(trace, layer, bool(reverse)),
                way,
                trace.active,
                _squashed(trace.call.module, way),
                self.thresholds,
            )
        ]
        return tuple(worst_first(found))


def trace_recurrent(
    model: nn.Module,
    inputs: Any,
    layers: Any = None,
    *,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - immutable
) -> Traces:
    """Run a model once, and return every gate and state of its LSTM, GRU and RNN layers at every step.

    Fused kernels show the states of the last layer alone. Here each layer is computed again step by step, for all
    layers and directions, with projections and packed sequences, and compared with what the module itself returned.
    The model runs in the modes that it is in; buffers and random states are put back.

    Args:
        model: any model with recurrent layers, or such a layer.
        inputs: its argument, a tuple of arguments, or a mapping of keyword arguments.
        layers: a dotted name, a wildcard, a module, a type, a sequence of those; None = all recurrent layers.
        thresholds: limits of the findings.

    Returns:
        A mapping: `trace[name].at(layer, reverse=False).gates` has `(n, t, h)` tensors by name.

    Raises:
        LayerNotFoundError: no recurrent layer, or a pattern without a match.
        InputError: `layers` names other layers alone.
        CaptureError: no layer ran, or steps and module disagree, as with dropout between layers in train mode.

    Example:
        >>> import torch
        >>> lstm = torch.nn.LSTM(3, 5, batch_first=True).eval()
        >>> trace = trace_recurrent(lstm, torch.randn(2, 7, 3))
        >>> trace["LSTM"].gates["forget"].shape
        torch.Size([2, 7, 5])
    """
    chosen = recurrent_layers(model, layers)
    inner = check_observable(model)
    for name, module in chosen.items():
        if module.training and module.dropout > 0 and module.num_layers > 1:
            raise CaptureError(
                f"{name!r} drops values between its layers at random in train mode, so its steps cannot be repeated; "
                "call model.eval() first"
            )
    calls = run_recurrent(model, chosen, inputs)
    check_called(calls, chosen, type(inner).__name__)
    traces: dict[str, list[CallTrace]] = {}
    for call in calls:
        traces.setdefault(call.name, []).append(_trace(call))
    never_ran = tuple(name for name in chosen if name not in traces)
    found = {name: LayerTrace(own) for name, own in traces.items()}
    return Traces(found, never_ran, type(inner).__name__, thresholds)


def _trace(call: RecurrentCall) -> CallTrace:
    version = weights_version(call.module)
    device = call.inputs.data.device
    with passing(call.module, call.inputs), torch.autocast(device.type, enabled=False):
        steps = recurrent_trace(call.module, _in_weights_type(call), call.state)
    _check_equal(call, steps)
    return CallTrace(call, steps, version)


def _in_weights_type(call: RecurrentCall) -> Tensor | PackedSequence:
    """Under autocast the inputs may have another type than the weights."""
    dtype = next(call.module.parameters()).dtype
    if isinstance(call.inputs, PackedSequence):
        return PackedSequence(call.inputs.data.to(dtype), *call.inputs[1:])
    return call.inputs.to(dtype)


def _check_equal(call: RecurrentCall, steps: RecurrentTrace) -> None:
    """Raise CaptureError if output or last states differ from those of the module."""
    output, module = call.output, call.module
    if isinstance(output, PackedSequence):
        output = pad_packed_sequence(output, batch_first=True)[0]
    elif output.ndim == 2:
        output = output[None]
    elif not module.batch_first:
        output = output.transpose(0, 1)
    hidden, cell = steps.final()
    final = call.final if isinstance(call.final, tuple) else (call.final,)
    pairs = [(steps.output, output), (hidden, final[0].reshape(hidden.shape))]
    if cell is not None:
        pairs.append((cell, final[1].reshape(cell.shape)))
    loosest = max(_tolerance(own) for pair in pairs for own in pair)
    for found, expected in pairs:
        difference = (found - expected).abs().double()
        allowed = loosest * max(1.0, float(expected.abs().max())) if expected.numel() else 0.0
        if difference.numel() and not float(difference.max()) <= allowed:
            raise CaptureError(
                f"the steps of {call.name!r} do not give its own output: they differ by {float(difference.max()):.3g}, "
                f"expected at most {allowed:.3g}. A subclass, a hook or a parametrization may change it; trace a plain "
                "nn.RNN, nn.LSTM or nn.GRU"
            )


def _tolerance(tensor: Tensor) -> float:
    if tensor.is_cuda and tensor.dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        return _TOLERANCE_TF32
    return _TOLERANCES.get(tensor.dtype, 1e-1)


def _where(trace: CallTrace, layer: int, reverse: bool) -> str:
    where = f" of layer {layer}" if trace.layers > 1 else ""
    return where + (", in reverse" if reverse else "")


def _squashed(module: nn.RNNBase, way: DirectionTrace) -> Tensor | None:
    """States behind their tanh; None where they pass another function."""
    if way.cell is not None:
        return way.cell.tanh()
    return None if getattr(module, "nonlinearity", "tanh") == "relu" else way.hidden

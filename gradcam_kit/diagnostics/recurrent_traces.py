"""Traces of recurrent layers: gates and states of each call, memory, and findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradcam_kit.capture import RecurrentCall, passing, weights_version
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.diagnostics.maths.gates import DirectionTrace, RecurrentTrace
from gradcam_kit.diagnostics.maths.memory import gate_memory, gradient_memory, half_life
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.verdicts.gates import gate_findings
from gradcam_kit.errors import CaptureError, OptionError, UnknownNameError, did_you_mean
from gradcam_kit.options import positive_int, whole


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of one direction of a layer.

    Attributes:
        gates: for each unit, about how many steps it takes a state to fall to 1/e, by the mean of the forget gate
            (LSTM) or update gate (GRU); None for a plain RNN.
        gradients: norm of the gradient of the last state with respect to the input of each step.
        half_life: number of steps before the last one at which this norm has halved; infinite if it never halves, NaN
            if it is 0 at the last step.
    """

    gates: Float[Tensor, " h"] | None
    gradients: Float[Tensor, "n t"]
    half_life: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class CallTrace:
    """One call of a recurrent module, batch first; `gates`, `hidden` and `cell` are those of layer 0, forward.

    Attributes:
        call: the module with the inputs, states and outputs of the call.
        steps: gates and states of all layers and directions.
        version: versions of the weights, to recognize later changes.
    """

    call: RecurrentCall
    steps: RecurrentTrace
    version: tuple[tuple[int, int], ...]

    @property
    def layers(self) -> int:
        """The number of layers of the module."""
        return len(self.steps.directions)

    @property
    def bidirectional(self) -> bool:
        """Whether each layer also runs in reverse."""
        return len(self.steps.directions[0]) == 2

    @property
    def gates(self) -> Mapping[str, Float[Tensor, "n t h"]]:
        """Gates by name: input, forget, cell and output of an LSTM; reset, update and new of a GRU; none of an RNN."""
        return self.at(0).gates

    @property
    def hidden(self) -> Float[Tensor, "n t p"]:
        """The state of layer 0, forward, after each step."""
        return self.at(0).hidden

    @property
    def cell(self) -> Float[Tensor, "n t h"] | None:
        """The cell state of layer 0, forward, after each step; None unless the module is an LSTM."""
        return self.at(0).cell

    @property
    def output(self) -> Float[Tensor, "n t p"]:
        """The output of the last layer, directions concatenated; zero past the length of a packed sequence."""
        return self.steps.output

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """The number of steps of each sample; after the last step, gates are undefined and states stay constant."""
        return self.steps.lengths

    @property
    def active(self) -> Bool[Tensor, "n t"]:
        """The mask of the steps within the length of each sample."""
        t = self.steps.output.shape[1]
        return torch.arange(t, device=self.lengths.device) < self.lengths[:, None]

    def at(self, layer: int, reverse: bool = False) -> DirectionTrace:
        """Return gates and states of one layer in one direction.

        Raises:
            OptionError: a layer or direction that the module does not have.
        """
        if not -self.layers <= whole("layer", layer) < self.layers:
            raise OptionError(
                f"layer is {layer}; expected the index of one of the {self.layers} layers of {self.call.name!r}"
            )
        if reverse and not self.bidirectional:
            raise OptionError(f"reverse is True, but {self.call.name!r} runs only forward; pass reverse=False")
        return self.steps.directions[layer][int(reverse)]

    def memory(self, layer: int = 0, reverse: bool = False, *, probes: int = 16, seed: int = 0) -> Memory:
        """Measure how far back one direction of a layer remembers, by its gates and by gradients.

        Args:
            layer: index of the layer, counted from 0.
            reverse: use the reverse direction.
            probes: number of backward passes. With at least as many passes as units, the norm of the gradient is
                exact; otherwise, it is estimated along random directions.
            seed: seed of the random directions.

        Raises:
            CaptureError: the weights have changed since the trace.
            OptionError: a layer or direction that the module does not have, or `probes` is less than 1.
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


@dataclass(frozen=True, eq=False)
class LayerTrace(CallTrace):
    """All calls of a recurrent module; the attributes and properties of `CallTrace` are those of the last call.

    Attributes:
        calls: all calls in one pass, in order.
    """

    calls: tuple[CallTrace, ...] = ()

    @classmethod
    def of(cls, calls: list[CallTrace]) -> LayerTrace:
        """Return the trace of all calls of one module."""
        last = calls[-1]
        return cls(last.call, last.steps, last.version, tuple(calls))


class Traces(Mapping[str, LayerTrace]):
    """Traces by module name, in the order in which the modules first ran.

    If the model itself is a recurrent module, its trace is also available as `traces[""]`.

    Attributes:
        layers: name of each module that ran, with its trace.
        never_ran: recurrent modules that the model did not call.
        thresholds: limits of the findings.
    """

    def __init__(
        self, layers: dict[str, LayerTrace], never_ran: tuple[str, ...], root: str, limits: Thresholds
    ) -> None:
        self.layers, self.never_ran, self._root, self.thresholds = layers, never_ran, root, limits

    def __getitem__(self, name: str) -> LayerTrace:
        if name == "" and self._root in self.layers:
            return self.layers[self._root]
        if name in self.never_ran:
            raise CaptureError(f"layer {name!r} did not run; the model has it, but does not call it")
        if name not in self.layers:
            known = ", ".join(self.layers)
            hint = did_you_mean(name, self.layers) or f"; the traced layers are {known}"
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
        """The findings about stuck gates, and about saturated gates and states, worst first."""
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


def _where(trace: CallTrace, layer: int, reverse: bool) -> str:
    where = f" of layer {layer}" if trace.layers > 1 else ""
    return where + (", in reverse" if reverse else "")


def _squashed(module: nn.RNNBase, way: DirectionTrace) -> Tensor | None:
    """Return the states, which tanh limits to [-1, 1] (tanh of the cell in an LSTM); None if the module uses ReLU."""
    if way.cell is not None:
        return way.cell.tanh()
    return None if getattr(module, "nonlinearity", "tanh") == "relu" else way.hidden

"""Recompute recurrent layers step by step to obtain the gates and states that PyTorch's fused kernels do not expose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gradcam_kit.errors import InputError, ShapeError, kind_of

LSTM_GATES = ("input", "forget", "cell", "output")
GRU_GATES = ("reset", "update", "new")


@dataclass(frozen=True)
class DirectionTrace:
    """Gates and states of one layer of a recurrent module in one direction, at each step of the input.

    Attributes:
        gates: name -> `(n, t, h)`: input, forget, cell and output of an LSTM; reset, update and new of a GRU; empty for
            a plain RNN. `cell` and `new` are the candidates, from -1 to 1; all other gates are from 0 to 1.
        hidden: the state after each step `(n, t, p)`, where p is the size of the projection, or h without one.
        cell: the cell state of an LSTM after each step `(n, t, h)`; None for a GRU or a plain RNN.

    Past the end of a packed sequence, states repeat its last state (in reverse, the initial state), and gates are
    undefined.
    """

    gates: Mapping[str, Float[Tensor, "n t h"]]
    hidden: Float[Tensor, "n t p"]
    cell: Float[Tensor, "n t h"] | None


@dataclass(frozen=True)
class RecurrentTrace:
    """All layers and directions of a recurrent module.

    Attributes:
        directions: one tuple per layer: forward, and reverse if the module is bidirectional.
        output: output of the last layer `(n, t, directions * p)`, zero past the length of a packed sequence.
        lengths: number of steps of each sample.
    """

    directions: tuple[tuple[DirectionTrace, ...], ...]
    output: Float[Tensor, "n t p"]
    lengths: Int[Tensor, " n"]

    def final(self) -> tuple[Float[Tensor, "d n p"], Float[Tensor, "d n h"] | None]:
        """Return the last states as the module returns them: `h_n`, and `c_n` of an LSTM."""
        flat = [(way, reverse) for layer in self.directions for reverse, way in enumerate(layer)]
        hidden = torch.stack([self._last(way.hidden, bool(reverse)) for way, reverse in flat])
        cells = [self._last(way.cell, bool(reverse)) for way, reverse in flat if way.cell is not None]
        return hidden, torch.stack(cells) if cells else None

    def _last(self, states: Float[Tensor, "n t h"], reverse: bool) -> Float[Tensor, "n h"]:
        return states[:, 0] if reverse else states[:, -1]  # states do not change past the end of a sequence


State = tuple[Tensor, Tensor | None]
Step = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None, tuple[Tensor, ...]]]


def recurrent_trace(
    module: nn.Module, inputs: Tensor | PackedSequence, state: Tensor | tuple[Tensor, Tensor] | None = None
) -> RecurrentTrace:
    r"""Run an LSTM, GRU or RNN step by step, and return every gate and state.

    The equations are those of PyTorch's documentation. LSTM (gates i, f, g, o of $a = W_{ih} x + b_{ih} + W_{hh} h +
    b_{hh}$): $c \leftarrow f \circ c + i \circ g$, $h \leftarrow o \circ \tanh c$, then $h \leftarrow W_{hr} h$ if the
    module projects. GRU: $n = \tanh(W_{in} x + b_{in} + r \circ (W_{hn} h + b_{hn}))$, $h \leftarrow (1 - z) \circ n +
    z \circ h$. Dropout between layers is left out, so compare with the module in eval mode.

    Args:
        module: the recurrent module.
        inputs: in the layout of the module: `(t, n, f)`, `(n, t, f)` with `batch_first`, `(t, f)`, or packed.
        state: the initial state, in the form that the module accepts; None = zeros.

    Returns:
        The trace. Its tensors are batch first for every layout of the module, and remain attached to the graph.

    Raises:
        InputError: the module is not an LSTM, GRU or RNN.
        ShapeError: inputs that do not have 2 or 3 axes, or a different number of features than the module expects.
    """
    if not isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        raise InputError(f"the module is {kind_of(module)}; expected torch.nn.LSTM, GRU or RNN")
    sequences, lengths = _batch_first(module, inputs)
    n, t = sequences.shape[:2]
    active = torch.arange(t, device=sequences.device) < lengths[:, None]
    directions = 2 if module.bidirectional else 1
    first = _initial(module, state, n, sequences)
    layers = []
    for layer in range(module.num_layers):
        ways = tuple(
            _run(module, layer, bool(reverse), sequences, active, first(layer * directions + reverse))
            for reverse in range(directions)
        )
        layers.append(ways)
        sequences = torch.cat([way.hidden for way in ways], dim=-1) * active[..., None]
    return RecurrentTrace(tuple(layers), sequences, lengths)


def _run(
    module: nn.RNNBase,
    layer: int,
    reverse: bool,
    sequences: Float[Tensor, "n t f"],
    active: Bool[Tensor, "n t"],
    state: State,
) -> DirectionTrace:
    """Run one layer in one direction; a sequence that has ended (or not begun, in reverse) keeps its state."""
    step = _step(module, f"l{layer}{'_reverse' if reverse else ''}")
    hidden, cell = state
    length = sequences.shape[1]
    kept: list[tuple[Tensor, Tensor | None, tuple[Tensor, ...]]] = []
    for t in reversed(range(length)) if reverse else range(length):
        now = active[:, t, None]
        new_hidden, new_cell, gates = step(sequences[:, t], hidden, cell)
        hidden = torch.where(now, new_hidden, hidden)
        if cell is not None and new_cell is not None:
            cell = torch.where(now, new_cell, cell)
        kept.append((hidden, cell, gates))
    if reverse:
        kept.reverse()
    names = LSTM_GATES if isinstance(module, nn.LSTM) else GRU_GATES if isinstance(module, nn.GRU) else ()
    return DirectionTrace(
        gates={name: _stack([gates[i] for _, _, gates in kept]) for i, name in enumerate(names)},
        hidden=_stack([one for one, _, _ in kept]),
        cell=None if cell is None else _stack([one for _, one, _ in kept if one is not None]),
    )


def _step(module: nn.RNNBase, suffix: str) -> Step:
    """Return a function that computes one step of a cell with its weights."""

    def weight(name: str) -> Tensor | None:
        found: Tensor | None = getattr(module, f"{name}_{suffix}", None)
        return found

    w_ih, w_hh = getattr(module, f"weight_ih_{suffix}"), getattr(module, f"weight_hh_{suffix}")
    b_ih, b_hh, w_hr = weight("bias_ih"), weight("bias_hh"), weight("weight_hr")
    linear = nn.functional.linear

    def lstm(x: Tensor, hidden: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        i, f, g, o = (linear(x, w_ih, b_ih) + linear(hidden, w_hh, b_hh)).chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new = i * g if cell is None else f * cell + i * g
        out = o * new.tanh()
        return out if w_hr is None else linear(out, w_hr), new, (i, f, g, o)

    def gru(x: Tensor, hidden: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        x_r, x_z, x_n = linear(x, w_ih, b_ih).chunk(3, dim=1)
        h_r, h_z, h_n = linear(hidden, w_hh, b_hh).chunk(3, dim=1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        new = (x_n + r * h_n).tanh()
        return (1 - z) * new + z * hidden, None, (r, z, new)

    def plain(x: Tensor, hidden: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        activation = torch.relu if getattr(module, "nonlinearity", "tanh") == "relu" else torch.tanh
        return activation(linear(x, w_ih, b_ih) + linear(hidden, w_hh, b_hh)), None, ()

    return lstm if isinstance(module, nn.LSTM) else gru if isinstance(module, nn.GRU) else plain


def _batch_first(module: nn.RNNBase, inputs: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
    """Return the sequences `(n, t, f)` in the caller's order, and the length of each."""
    if isinstance(inputs, PackedSequence):
        padded, lengths = pad_packed_sequence(inputs, batch_first=True)
        sequences: Tensor = padded
        return sequences, lengths.to(sequences.device)
    if inputs.ndim not in (2, 3) or inputs.shape[-1] != module.input_size:
        raise ShapeError(
            f"inputs are {tuple(inputs.shape)}; expected (n, t, {module.input_size}) or, without batch_first, "
            f"(t, n, {module.input_size})"
        )
    batched = inputs[None] if inputs.ndim == 2 else inputs
    sequences = batched if module.batch_first or inputs.ndim == 2 else batched.transpose(0, 1)
    return sequences, torch.full((sequences.shape[0],), sequences.shape[1], device=sequences.device)


def _initial(
    module: nn.RNNBase, state: Tensor | tuple[Tensor, Tensor] | None, n: int, like: Tensor
) -> Callable[[int], State]:
    """Return a function from the index of a layer and direction to its initial state."""
    given: Sequence[Tensor] = () if state is None else [state] if isinstance(state, Tensor) else list(state)
    batched = [one[:, None] if one.ndim == 2 else one for one in given]
    has_cell = isinstance(module, nn.LSTM)

    def first(index: int) -> State:
        if batched:
            return batched[0][index], batched[1][index] if has_cell else None
        hidden = like.new_zeros(n, module.proj_size or module.hidden_size)
        return hidden, like.new_zeros(n, module.hidden_size) if has_cell else None

    return first


def _stack(steps: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(steps), dim=1)

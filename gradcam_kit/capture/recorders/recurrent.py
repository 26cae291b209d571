"""Run one pass, record the inputs and outputs of every recurrent layer, and restore the model afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.model.layers import select_layers
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.model.trees import map_output
from gradcam_kit.capture.observable import check_observable
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, kind_of

State = Tensor | tuple[Tensor, Tensor] | None


@dataclass(frozen=True, eq=False)
class RecurrentCall:
    """One call of a recurrent layer, with copies of its tensors without a graph.

    Attributes:
        name: the layer's dotted name.
        module: the layer.
        inputs: the input sequences, as a tensor or a packed sequence.
        state: the initial state; None = zeros.
        output: the returned sequences, packed if the inputs were packed.
        final: the returned last states.
    """

    name: str
    module: nn.RNNBase
    inputs: Tensor | PackedSequence
    state: State
    output: Tensor | PackedSequence
    final: Tensor | tuple[Tensor, Tensor]


def recurrent_layers(model: Any, layers: Any = None) -> dict[str, nn.RNNBase]:
    """Return the `nn.RNN`, `nn.LSTM` and `nn.GRU` layers that match the patterns, or all for None.

    Raises:
        LayerNotFoundError: the model has no recurrent layer, or a pattern has no match.
        InputError: the patterns match only other layers.
    """
    inner = check_observable(model)
    if layers is None:
        every = {name or type(inner).__name__: module for name, module in inner.named_modules()}
        found = {name: module for name, module in every.items() if isinstance(module, nn.RNNBase)}
        if not found:
            cells = [name for name, module in every.items() if isinstance(module, nn.RNNCellBase)]
            hint = f"; cells that the model steps itself are not traced: {', '.join(cells[:4])}" if cells else ""
            raise LayerNotFoundError(
                f"{type(inner).__name__} has no recurrent layer; looked for nn.RNN, nn.LSTM and nn.GRU among its "
                f"{len(every)} modules{hint}"
            )
        return found
    selected = select_layers(inner, layers, model)
    found = {name: module for name, module in selected.items() if isinstance(module, nn.RNNBase)}
    if not found:
        named = ", ".join(f"{name!r} is {kind_of(module)}" for name, module in list(selected.items())[:4])
        raise InputError(f"layer {named}; expected nn.RNN, nn.LSTM or nn.GRU")
    return found


def run_recurrent(model: Any, layers: Mapping[str, nn.RNNBase], inputs: Any) -> list[RecurrentCall]:
    """Run the model once in its current modes, and return the calls of its recurrent layers in order.

    Flags, buffers and random states are restored afterwards, even after an error.

    Args:
        model: the user's model, possibly wrapped.
        layers: the result of `recurrent_layers`.
        inputs: one argument, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        InputError: the inputs contain no tensor.
    """
    inner = check_observable(model)
    calls: list[RecurrentCall] = []
    names = {module: name for name, module in layers.items()}

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert isinstance(module, nn.RNNBase)
        given, state = (*args, kwargs.get("hx"))[:2] if args else (kwargs["input"], kwargs.get("hx"))
        kept = map_output(lambda tensor: tensor.detach().clone(), (_plain(given), state, _plain(output[0]), output[1]))
        calls.append(RecurrentCall(names[module], module, _packed(kept[0]), kept[1], _packed(kept[2]), kept[3]))

    with passing(inner, inputs), holding_hooks() as attach:
        for module in names:
            attach.after(module, leave, with_kwargs=True)
        if isinstance(inputs, Mapping):
            inner(**inputs)
        elif isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence):
            inner(*inputs)
        else:
            inner(inputs)
    return calls


@contextmanager
def passing(module: nn.Module, inputs: Any) -> Iterator[None]:
    """Prepare a module for passes of this package, and restore its buffers, flags and random states afterwards."""
    leaves = tree_leaves(tuple(inputs) if isinstance(inputs, PackedSequence) else inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(f"inputs is {kind_of(inputs)} without a tensor; expected the inputs of the model")
    with untouched(module, tensors[0].device, keep_modes=True, restore_draws=True):
        yield


def _plain(value: Any) -> Any:
    """Return a packed sequence as a plain tuple, which can be copied without checks of its parts."""
    return tuple(value) if isinstance(value, PackedSequence) else value


def _packed(value: Any) -> Any:
    return PackedSequence(*value) if isinstance(value, tuple) else value


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return a value that changes when a parameter or buffer is replaced or, except in inference mode, written to."""
    return tuple(
        (id(own), -1 if own.is_inference() else own._version) for own in (*module.parameters(), *module.buffers())
    )


def check_called(calls: list[RecurrentCall], layers: Mapping[str, nn.RNNBase], model: str) -> None:
    """Raise CaptureError if none of the layers ran."""
    if not calls:
        raise CaptureError(
            f"none of the recurrent layers of {model} ran ({', '.join(list(layers)[:4])}); the model may hold them "
            "without calling them, or call cells of its own"
        )

"""Trace recurrent layers step by step: every gate and state, verified against the outputs of the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
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
from gradcam_kit.diagnostics.maths.gates import RecurrentTrace, recurrent_trace
from gradcam_kit.diagnostics.recurrent_traces import CallTrace, LayerTrace, Traces
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.errors import CaptureError

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOLERANCE_TF32 = 5e-3  # by default, cuDNN rounds the factors of float32 products to TF32


def trace_recurrent(
    model: Any,
    inputs: Any,
    layers: Any = None,
    *,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - immutable
) -> Traces:
    """Run a model once, and return every gate and state of its LSTM, GRU and RNN layers at every step.

    Fused kernels return neither the gates nor the states of earlier layers at each step. Therefore, each module is
    recomputed step by step, in all layers and directions, with projections and packed sequences, and the result is
    compared with the output of the module. The model runs in its current modes; buffers and random states are restored.

    Args:
        model: any model with recurrent layers, or a recurrent layer itself.
        inputs: the argument of the model, a tuple of arguments, or a mapping of keyword arguments.
        layers: a dotted name, a wildcard, a module, a type, or a sequence of these; None = all recurrent layers.
        thresholds: limits of the findings.

    Returns:
        A mapping: `trace[name].at(layer, reverse=False).gates` maps each gate to a tensor `(n, t, h)`.

    Raises:
        LayerNotFoundError: no recurrent layer, or a pattern that matches no module.
        InputError: `layers` names only layers that are not recurrent.
        CaptureError: no layer ran, a module applies dropout between its layers in train mode, or the recomputed output
            differs from that of the module.

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
                f"{name!r} applies dropout between its layers in train mode, so its steps cannot be recomputed; "
                "call model.eval() first"
            )
    calls = run_recurrent(model, chosen, inputs)
    check_called(calls, chosen, type(inner).__name__)
    traces: dict[str, list[CallTrace]] = {}
    for call in calls:
        traces.setdefault(call.name, []).append(_trace(call))
    never_ran = tuple(name for name in chosen if name not in traces)
    found = {name: LayerTrace.of(own) for name, own in traces.items()}
    return Traces(found, never_ran, type(inner).__name__, thresholds)


def _trace(call: RecurrentCall) -> CallTrace:
    version = weights_version(call.module)
    device = call.inputs.data.device
    with passing(call.module, call.inputs), torch.autocast(device.type, enabled=False):
        steps = recurrent_trace(call.module, _in_weights_type(call), call.state)
    _check_equal(call, steps)
    return CallTrace(call, steps, version)


def _in_weights_type(call: RecurrentCall) -> Tensor | PackedSequence:
    """Convert the inputs to the data type of the weights; under autocast, the two data types may differ."""
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
    final: tuple[Tensor, ...] = call.final if isinstance(call.final, tuple) else (call.final,)
    pairs: list[tuple[Tensor, Tensor]] = [(steps.output, output), (hidden, final[0].reshape(hidden.shape))]
    if cell is not None:
        pairs.append((cell, final[1].reshape(cell.shape)))
    loosest = max(_tolerance(own) for pair in pairs for own in pair)
    for found, expected in pairs:
        difference = (found - expected).abs().double()
        allowed = loosest * max(1.0, float(expected.abs().max())) if expected.numel() else 0.0
        if difference.numel() and not float(difference.max()) <= allowed:
            raise CaptureError(
                f"the recomputed output of {call.name!r} differs from the output of the module by "
                f"{float(difference.max()):.3g}; expected at most {allowed:.3g}. A subclass, a hook or a "
                "parametrization may change the output; trace a plain "
                "nn.RNN, nn.LSTM or nn.GRU"
            )


def _tolerance(tensor: Tensor) -> float:
    if tensor.is_cuda and tensor.dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        return _TOLERANCE_TF32
    return _TOLERANCES.get(tensor.dtype, 1e-1)

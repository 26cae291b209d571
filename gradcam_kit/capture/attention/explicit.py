"""Compute fused attention step by step, so that an observer gets the softmax and the matrix products.

Nothing in the model is replaced: a `TorchFunctionMode` intercepts the calls of this thread for the duration of the
block.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@runtime_checkable
class Observer(Protocol):
    """Interface for observers of attention. The tensor that a method returns replaces the observed tensor."""

    def see_softmax(self, probabilities: Tensor) -> Tensor:
        """Observe a softmax over the last axis of a tensor with at least three axes."""
        ...

    def see_product(self, left: Tensor, right: Tensor, product: Tensor) -> Tensor:
        """Observe a matrix product of two tensors with at least three axes."""
        ...


class ExplicitAttention(TorchFunctionMode):
    """Makes `scaled_dot_product_attention` and `nn.MultiheadAttention` compute attention with separate operations.

    While the mode is active, `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` do not take their fast path, a
    fused kernel whose steps cannot be observed.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` or its explicit replacement, and show the observer softmaxes and matrix products."""
        kwargs = kwargs or {}
        if func in _INSTEAD:
            with self:
                return _INSTEAD[func](*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX and isinstance(result, Tensor) and result.ndim >= 3:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, result.ndim - 1):
                return self.observer.see_softmax(result)
        elif func in _PRODUCTS:
            left, right = args[_PRODUCTS[func] :][:2] if len(args) > _PRODUCTS[func] + 1 else (result, result)
            if left.ndim >= 3 and right.ndim >= 3:
                return self.observer.see_product(left, right, result)
        return result


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `scaled_dot_product_attention` step by step, in at least float32, like fused kernels."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    probabilities = attention_probabilities(query, key, attn_mask, is_causal, scale, enable_gqa)
    with torch.autocast(device, enabled=False):
        value = value.to(probabilities.dtype)
        if enable_gqa:
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
        if dropout_p > 0:
            probabilities = torch.dropout(probabilities, dropout_p, True)
        return torch.matmul(probabilities, value).to(dtype)


def attention_probabilities(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention probabilities in at least float32, with zeros for queries whose keys are all masked."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.to(wide), key.to(wide)
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = torch.matmul(query * factor, key.transpose(-2, -1))
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, -torch.inf)
        if attn_mask is None:
            return torch.softmax(scores, -1)
        allowed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if allowed else scores + attn_mask
        # A fully masked query gets zeros, not NaN.
        nothing = (scores == -torch.inf).all(-1, keepdim=True)
        return torch.softmax(scores.masked_fill(nothing, 0), -1).masked_fill(nothing, 0)


def _no(_: Any) -> bool:
    return False


def _open(function: Any) -> Callable[..., Any]:
    """Return a copy of a function without torch's own dispatch, so that an active mode sees the calls inside it."""
    scope = {**function.__globals__, "has_torch_function": _no, "has_torch_function_unary": _no}
    opened = FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


_SOFTMAX = {torch.softmax, torch.Tensor.softmax, functional.softmax, torch.special.softmax}
_PRODUCTS = {
    torch.matmul: 0,
    torch.Tensor.matmul: 0,
    torch.bmm: 0,
    torch.Tensor.bmm: 0,
    torch.baddbmm: 1,
    torch.Tensor.baddbmm: 1,
}
"""Maps each matrix product to the position of its left factor among the arguments."""
_INSTEAD: dict[Any, Callable[..., Any]] = {
    functional.scaled_dot_product_attention: explicit_attention,
    functional.multi_head_attention_forward: _open(functional.multi_head_attention_forward),
    # Recomputed parts of checkpointed models must take the same path as in the forward pass.
    torch.autograd.grad: _open(torch.autograd.grad),
    torch.autograd.backward: _open(torch.autograd.backward),
    torch.Tensor.backward: _open(torch.Tensor.backward),
}

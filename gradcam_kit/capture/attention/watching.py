"""Observe attention in the user's own passes, while the model continues with the outputs of its own kernels.

A softmax over the last axis is treated as attention if a matrix product weights values by it.
`scaled_dot_product_attention` and `nn.MultiheadAttention` are always observed. Kernels outside torch (flash-attn,
xformers, flex attention) cannot be observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.attention.explicit import ExplicitAttention, attention_probabilities
from gradcam_kit.capture.layouts import has_class_token, token_layout
from gradcam_kit.capture.model.forks import is_scripted
from gradcam_kit.capture.observable import check_observable, in_backward, is_transformed
from gradcam_kit.capture.observing import runs_compiled
from gradcam_kit.errors import ShapeError
from gradcam_kit.functional import at_least_float32

_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


@dataclass(frozen=True, eq=False)
class SeenHeads:
    """The attention that one module computed in one call of the model.

    Attributes:
        name: name of the innermost module that computed the attention.
        around: names of the modules that contain this module, from the innermost to the model.
        step: number of the model's call, counted from 1.
        probabilities: attention after the softmax, without dropout, as a copy without a graph.
        output_norm: norm of each head's output per sample, `probabilities @ values`; None if it was not observed.
    """

    name: str
    around: tuple[str, ...]
    step: int
    probabilities: Float[Tensor, "n heads q k"]
    output_norm: Float[Tensor, "n heads"] | None


@dataclass(frozen=True)
class TokenGrid:
    """The layout of an image's tokens: `prefix` tokens without a position, then the grid row by row."""

    grid: tuple[int, ...]
    prefix: int
    has_class_token: bool


@dataclass
class _Frame:
    name: str
    module: nn.Module
    shapes: list[tuple[int, ...]]


@dataclass(eq=False)
class _Pending:
    """A softmax that no matrix product has used yet."""

    seen: SeenHeads
    shape: tuple[int, ...]
    depth: int


@dataclass(eq=False)
class AttentionWatch:
    """The state of a `watch_attention` block.

    Attributes:
        keep: function that is called with each attention.
        steps: number of calls of the model.
        images: shape of the images `(n, c, *t)` of the model's last call; None if it got no images.
        texts: lengths t of the integer inputs `(n, t)` of that call, which are assumed to be texts.
        skipped: maps the name of a module to the reason why one of its softmaxes is not attention.
        notes: remarks on how passes inside the block differ from other passes, each at most once.
    """

    model: nn.Module
    keep: Callable[[SeenHeads], None]
    steps: int = 0
    images: tuple[int, ...] | None = None
    texts: frozenset[int] = frozenset()
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _names: dict[nn.Module, str] = field(default_factory=dict)
    _frames: list[_Frame] = field(default_factory=list)
    _pending: list[_Pending] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, unless the same note has been added before."""
        if text not in self.notes:
            self.notes.append(text)

    def grid(self, n: int, tokens: int) -> TokenGrid | None:
        """Return the layout of `tokens` tokens of each of n images, or None if they do not cover an image.

        The result is also None if the tokens fit no grid or several grids. Tokens of windows or texts do not cover an
        image.
        """
        if self.images is None or self.images[0] != n or tokens in self.texts:
            return None
        try:
            layout = token_layout(tokens, self.images[2:], self.model, "")
        except ShapeError:
            return None
        return TokenGrid(layout.grid, layout.prefix, has_class_token(self.model, layout.prefix))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record that a module is about to run."""
        if in_backward():
            return
        tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        if module is self.model:
            self._frames, self._pending = [], []
            self.steps += 1
            images = [tuple(x.shape) for x in tensors if x.is_floating_point() and x.ndim in (4, 5)]
            self.images = images[0] if images else None
            self.texts = frozenset(x.shape[1] for x in tensors if not x.is_floating_point() and x.ndim == 2)
        if isinstance(module, _FAST_PATH) and _takes_fast_path(module):
            self.note(
                "nn.MultiheadAttention and nn.TransformerEncoderLayer do not take their fused fast path while "
                "attention is captured. Outputs may differ by rounding, and at padded tokens by more."
            )
        self._frames.append(_Frame(self._names[module], module, [tuple(x.shape) for x in tensors]))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record that a module has run, and drop softmaxes of its submodules that no matrix product has used."""
        if in_backward():
            return
        while self._frames and self._frames.pop().module is not module:
            pass  # the frame of a module that raised an exception
        for one in [one for one in self._pending if one.depth > len(self._frames) + 1]:
            self._drop(one)
        if module is self.model:
            for one in list(self._pending):
                self._drop(one)

    def see_softmax(self, probabilities: Tensor) -> Tensor:
        """Keep a copy until a matrix product uses it, and return the model's own tensor."""
        if self._observes and probabilities.numel():
            copy = probabilities.detach().clone()
            self._pending.append(_Pending(self._seen(copy, None), tuple(copy.shape), len(self._frames)))
        return probabilities

    def see_product(self, left: Tensor, right: Tensor, product: Tensor) -> Tensor:
        """Report the pending softmax that is one of the factors, if there is one."""
        if self._pending and self._observes:
            for one in reversed(self._pending):
                queries, keys = one.shape[-2:]
                if tuple(left.shape[-2:]) == (queries, keys) and left.numel() == prod(one.shape):
                    self._confirm(one, product)
                    break
                if tuple(right.shape[-2:]) == (keys, queries) and right.numel() == prod(one.shape):
                    self._confirm(one, None)
                    break
        return product

    def see_einsum(self, operands: list[Any]) -> None:
        """Report the pending softmax that is one of the operands, if there is one."""
        shapes = {tuple(one.shape) for one in operands if isinstance(one, Tensor)}
        for one in [one for one in reversed(self._pending) if one.shape in shapes][:1]:
            self._confirm(one, None)

    def see_fused(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Compute and report the probabilities that a fused kernel does not return."""
        if not self._observes or not isinstance(output, Tensor) or not output.numel():
            return
        given = dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs)
        own = {name: value for name, value in given.items() if name not in ("value", "dropout_p")}
        with torch.no_grad():
            self.keep(self._seen(attention_probabilities(**own), output))

    @property
    def _observes(self) -> bool:
        if not self._frames or in_backward():
            return False
        if is_transformed():
            self.note("Calls under vmap, functorch transforms or tracing are not observed.")
            return False
        return True

    def _seen(self, probabilities: Tensor, output: Tensor | None) -> SeenHeads:
        frames = [frame for frame in self._frames if not isinstance(frame.module, nn.Softmax)] or self._frames
        n, heads = _samples_and_heads(tuple(probabilities.shape), frames)
        maps = at_least_float32(probabilities.detach()).reshape(n, heads, *probabilities.shape[-2:])
        around = tuple(frame.name for frame in reversed(frames[:-1]))
        return SeenHeads(frames[-1].name, around, self.steps, maps, _norm(output, n, heads))

    def _confirm(self, one: _Pending, product: Tensor | None) -> None:
        self._pending.remove(one)
        n, heads = one.seen.probabilities.shape[:2]
        norm = _norm(product, n, heads)
        self.keep(SeenHeads(one.seen.name, one.seen.around, one.seen.step, one.seen.probabilities, norm))

    def _drop(self, one: _Pending) -> None:
        self._pending.remove(one)
        self.skipped[one.seen.name] = f"a softmax {one.shape} that no matrix product uses as weights"


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class _WatchedAttention(ExplicitAttention):
    """Reports attention to a watch, but keeps the output of fused kernels with their rounding and dropout."""

    def __init__(self, watch: AttentionWatch) -> None:
        super().__init__(watch)
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, and pass the result to the watch."""
        if func is functional.scaled_dot_product_attention:
            output = func(*args, **(kwargs or {}))
            self.watch.see_fused(args, kwargs or {}, output)
            return output
        if func is torch.functional.einsum:
            output = func(*args, **(kwargs or {}))
            self.watch.see_einsum(tree_leaves(args[1:]))
            return output
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def watch_attention(model: nn.Module, keep: Callable[[SeenHeads], None]) -> Iterator[AttentionWatch]:
    """Call `keep` with every attention that this thread computes inside the model during the block.

    Args:
        model: the user's model, possibly wrapped.
        keep: function that is called while the model runs; its exceptions reach the caller of the model.

    Raises:
        InputError: the layers of the model cannot be observed.
    """
    inner = check_observable(model)
    watch = AttentionWatch(inner, keep)
    watch._names = {
        module: name or type(inner).__name__ for name, module in inner.named_modules() if not is_scripted(module)
    }
    with ExitStack() as stack:
        attach = stack.enter_context(holding_hooks(protect_copies=True))
        if runs_compiled(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            watch.note("The model is compiled, but runs eagerly inside the block; values may differ by rounding.")
        for module in watch._names:
            attach.before(module, watch.enter, with_kwargs=True)
            attach.after(module, watch.leave)
        stack.enter_context(_WatchedAttention(watch))
        yield watch


def _takes_fast_path(module: nn.Module) -> bool:
    graph = torch.is_grad_enabled() and any(own.requires_grad for own in module.parameters())
    return not module.training and not graph and torch.backends.mha.get_fastpath_enabled()


def _samples_and_heads(shape: tuple[int, ...], frames: list[_Frame]) -> tuple[int, int]:
    """Return the numbers of samples and heads of `(..., heads, q, k)` or `(n * heads, q, k)`."""
    if len(shape) >= 4:
        return prod(shape[:-3]), shape[-3]
    rows, queries = shape[0], shape[1]
    for frame in frames[:-3:-1]:
        for own in frame.shapes[:1]:
            n = _samples(own, queries)
            if n and rows % n == 0:
                return n, rows // n
        heads = next((found for name in _HEADS if isinstance(found := getattr(frame.module, name, None), int)), 0)
        if heads > 0 and rows % heads == 0:
            return rows // heads, heads
    return rows, 1


def _samples(shape: tuple[int, ...], queries: int) -> int | None:
    """Return the number of samples of an argument with this number of queries, or None if its shape is ambiguous."""
    if len(shape) == 2 and shape[0] == queries:
        return 1
    if len(shape) == 3 and queries in shape[:2]:
        return shape[0] if shape[1] == queries else shape[1]
    return shape[0] if len(shape) == 4 else None


def _norm(output: Tensor | None, n: int, heads: int) -> Tensor | None:
    if output is None or output.numel() % max(n * heads, 1):
        return None
    flat = at_least_float32(output.detach()).reshape(n, heads, -1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=-1)
    return norm

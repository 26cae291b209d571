"""Test the inputs and outputs of every module in a pass, to find one with finite inputs and a non-finite output."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gradcam_kit.capture import Call, Observation, Observer, computes_relu, unobservable
from gradcam_kit.diagnostics.gradient_tracing import GradientFinder, GradientTracer, ModuleNodes
from gradcam_kit.diagnostics.magnitudes import Seen, extremes_of, magnitude_between
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.operators import Recorded

_TRAIL = 20
_SOFTMAX = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d)


@runtime_checkable
class Finder(GradientFinder, Protocol):
    """The receiver of the first non-finite value."""

    def forward(
        self,
        layer: str,
        module: nn.Module | None,
        tensor: Tensor,
        path: str,
        trail: Sequence[Seen],
        cause: str | None,
        recorded: Recorded | None,
    ) -> None:
        """Report a non-finite value of the forward pass."""


@dataclass(eq=False)
class _Frame(ModuleNodes):
    """One running module.

    Attributes:
        finite_input: whether all inputs are finite, apart from masks and from scores masked with -inf.
        input: the smallest and the largest value of the first input.
        largest_input: largest magnitude of the first input; NaN if there is none.
        scores: a copy of an input that holds -inf but no other non-finite value.
        recorded: all inputs, to run the module again; None unless the operator is to be found.
    """

    finite_input: bool = True
    input: tuple[float, float] = (math.nan, math.nan)
    largest_input: float = math.nan
    scores: Tensor | None = None
    recorded: Recorded | None = None


class Tracer(Observer):
    """Tests the inputs and outputs of every module; a `GradientTracer` follows the gradients."""

    def __init__(self, model: nn.Module, finder: Finder, detail: bool = False) -> None:
        self.model, self.finder, self.detail = model, finder, detail
        self.observation: Observation | None = None
        self.frames: list[_Frame] = []
        self.again: list[_Frame] = []
        self.trail: deque[Seen] = deque(maxlen=_TRAIL)
        self.known: dict[int, tuple[weakref.ref[Tensor], int, tuple[float, float]]] = {}
        self.gradients = GradientTracer(finder, _TRAIL)
        self.masked: tuple[str, nn.Module, Tensor, str, Recorded | None] | None = None
        self.masked_depth = 0

    def forget(self) -> None:
        """Release all references."""
        self.frames, self.again, self.masked, self.observation = [], [], None, None
        self.known.clear()
        self.trail.clear()
        self.gradients.forget()

    # Forward ----------------------------------------------------------------------------------------------------

    def begin(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin a new pass."""
        self.frames, self.again, self.masked = [], [], None
        self.known.clear()
        self.trail.clear()
        self.gradients.forget()

    def enter(self, call: Call) -> None:
        """Test the inputs before the module can change them in place."""
        given = named_leaves("input", call.args if len(call.args) != 1 else call.args[0])
        if call.kwargs:
            given = chain(given, named_leaves("input", dict(call.kwargs)))
        tensors = [(path, leaf) for path, leaf in given if unobservable(leaf) is None]
        nodes = [leaf.grad_fn for _, leaf in tensors]
        frame = _Frame(call.name, call.module, inputs=[node for node in nodes if node is not None])
        if call.recomputed:
            self.again.append(frame)
            return
        if not self.frames:
            self.gradients.enter(frame)
        for position, (path, leaf) in enumerate(tensors):
            extremes = self._extremes(leaf)
            largest = magnitude_between(*extremes)
            if not position:
                frame.input, frame.largest_input = extremes, largest
            if math.isfinite(largest) or _is_mask(path, leaf):
                continue
            if _has_only_minus_infinity(leaf):
                frame.scores = leaf.detach().clone()  # copied, because the module may change it in place
                continue
            frame.finite_input = False
            if not call.name and not self.frames:
                self._found("", None, leaf, path, "input")
            else:
                self._settle()
        if self.detail and frame.finite_input:
            frame.recorded = Recorded.of(call.module, call.args, call.kwargs)
        self.frames.append(frame)

    def leave(self, call: Call) -> None:
        """Test the outputs; the innermost module with finite inputs is the origin of non-finite values."""
        frame = _popped(self.again if call.recomputed else self.frames, call)
        if torch.is_grad_enabled():
            assert self.observation is not None
            outer = self.again if call.recomputed else self.frames
            self.gradients.watch(self.observation, frame, call.output, outer[-1] if outer else None)
        if call.recomputed:
            return
        leaves = [(path, leaf) for path, leaf in named_leaves(call.name, call.output) if unobservable(leaf) is None]
        if len(leaves) == 1 and computes_relu(call.module) and math.isfinite(frame.largest_input):
            self._remember(leaves[0][1], (max(frame.input[0], 0.0), max(frame.input[1], 0.0)))
        magnitudes = [magnitude_between(*self._extremes(leaf)) for _, leaf in leaves]
        if all(map(math.isfinite, magnitudes)):
            if frame.scores is not None or len(self.frames) < self.masked_depth:
                self.masked = None  # a softmax consumed the masked scores
        else:
            for (path, leaf), largest in zip(leaves, magnitudes, strict=True):
                if not math.isfinite(largest) and frame.finite_input and not _is_mask("", leaf):
                    self._judge(frame, call, path, leaf)
        self.trail.append(Seen(call.name, frame.largest_input, magnitudes[0] if magnitudes else math.nan))

    def _judge(self, frame: _Frame, call: Call, path: str, leaf: Tensor) -> None:
        """Judge a non-finite output of a module whose inputs are finite, apart from masked scores."""
        if call.name and _has_only_minus_infinity(leaf):
            # Scores masked with -inf are valid before a softmax, so the modules that follow decide.
            if self.masked is None:
                self.masked = (call.name, call.module, leaf, path, frame.recorded)
                self.masked_depth = len(self.frames)
            return
        if frame.scores is not None:
            is_softmax = isinstance(call.module, _SOFTMAX) or _acts_as_softmax(frame.scores, leaf)
            if not is_softmax:
                self._settle()
                return
        elif self.masked is not None and not bool((self.masked[2] == -torch.inf).all(-1).any()):
            self._settle()
        self._found(call.name, call.module, leaf, path or "the output", None, frame.recorded)

    def end(self, step: int, output: Any) -> None:
        """End the pass, and report masked scores in its output."""
        for _, leaf in named_leaves("", output):
            if isinstance(leaf, Tensor) and leaf.requires_grad and not leaf.is_leaf and self.observation is not None:
                self.observation.attach.on_gradient(leaf, self.gradients.at_the_loss)
            if (
                self.masked is not None
                and unobservable(leaf) is None
                and not math.isfinite(magnitude_between(*self._extremes(leaf)))
            ):
                self._settle()
        self.frames, self.masked = [], None
        self.known.clear()

    def _settle(self) -> None:
        """Report masked scores (-inf) that no softmax consumed."""
        if self.masked is not None:
            (name, module, tensor, path, recorded), self.masked = self.masked, None
            self._found(name, module, tensor, path, None, recorded)

    def _found(
        self,
        name: str,
        module: nn.Module | None,
        tensor: Tensor,
        path: str,
        cause: str | None,
        recorded: Recorded | None = None,
    ) -> None:
        self.finder.forward(name, module, tensor, path, tuple(self.trail), cause, recorded)

    def _extremes(self, tensor: Tensor) -> tuple[float, float]:
        known = self.known.get(id(tensor))
        if known is not None and known[0]() is tensor and not tensor.is_inference() and known[1] == tensor._version:
            return known[2]
        return self._remember(tensor, extremes_of(tensor))

    def _remember(self, tensor: Tensor, extremes: tuple[float, float]) -> tuple[float, float]:
        version = -1 if tensor.is_inference() else tensor._version
        self.known[id(tensor)] = weakref.ref(tensor), version, extremes
        return extremes


def _popped(frames: list[_Frame], call: Call) -> _Frame:
    """Pop the frame of this call, and frames of modules whose exceptions the model caught."""
    while frames:
        frame = frames.pop()
        if frame.module is call.module:
            return frame
    return _Frame(call.name, call.module)


def _is_mask(path: str, tensor: Tensor) -> bool:
    """Whether infinities are expected: "mask" in the path, or only 0 and -inf as values, some 0; False with NaN."""
    if bool(tensor.isnan().any()):
        return False
    return "mask" in path or bool(((tensor == 0) | (tensor == -torch.inf)).all() and (tensor == 0).any())


def _has_only_minus_infinity(tensor: Tensor) -> bool:
    """Whether the only non-finite value is -inf, and some values are finite."""
    return not bool(tensor.isnan().any() or (tensor == torch.inf).any()) and bool(tensor.isfinite().any())


def _acts_as_softmax(scores: Tensor, output: Tensor) -> bool:
    """Whether rows with some -inf became finite, and only rows of all -inf did not."""
    if scores.shape != output.shape or scores.ndim == 0:
        return False
    masked = scores == -torch.inf
    partly = masked.any(-1) & ~masked.all(-1)
    bad = ~output.isfinite().all(-1)
    return bool(partly.any()) and not bool((bad & partly).any())

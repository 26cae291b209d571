"""Trace non-finite gradients through the autograd nodes of the modules, until they reach a parameter or vanish."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gradcam_kit.capture import Observation, unobservable
from gradcam_kit.diagnostics.magnitudes import Seen, is_finite, larger, largest_magnitude, largest_of, magnitudes_of
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.origins import OUTSIDE, Origin

# Operators that set some values to zero: if the gradient at the cutoff is infinite, gradients near it are unbounded.
_EDGES = ("Relu", "Threshold", "Hardtanh", "Clamp")
# Operators that pass on gradients without changing their values.
_VIEWS = frozenset(
    f"{name}Backward0"
    for name in ("Alias", "Permute", "ReshapeAlias", "T", "Transpose", "UnsafeView", "Unsqueeze", "View")
)
_KEY = "gradcam_kit.diagnostics"


@runtime_checkable
class GradientFinder(Protocol):
    """The receiver of the non-finite gradients that a `GradientTracer` finds."""

    def suspect(
        self, layer: str, tensor: Tensor, path: str, trail: Sequence[Seen], cause: str, operator: str
    ) -> Origin:
        """Return the record of a non-finite gradient that may still be set to zero before it does harm."""

    def backward(self, origin: Origin) -> None:
        """Report that the gradient reached a parameter or an input, or came from the loss."""


@dataclass(eq=False)
class ModuleNodes:
    """One call of a module, and the nodes of the graph between its inputs and its output.

    Attributes:
        name: dotted name of the module; "" for the model.
        module: the module.
        children: node of a child's output -> the nodes of the child's inputs.
        inputs: nodes of the module's inputs.
    """

    name: str
    module: nn.Module
    children: dict[Any, list[Any]] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Mark:
    """Facts about a node: the origin and size of arriving gradients, and whether gradients leave the model there.

    `passed` is the last gradient that was passed to the node, and its version. If several were passed, their sum
    arrives, and `arriving` is an upper bound of its size: the sum of their sizes.
    """

    origin: Origin | None = None
    leaves: bool = False
    is_leaf: bool = False
    arriving: float = math.nan
    passed: tuple[weakref.ref[Tensor], int] | None = None

    @classmethod
    def of(cls, node: Any) -> _Mark:
        """Return the mark of a node, created on first use; it is stored in the node, not in its temporary wrapper."""
        facts = node.metadata
        mark: _Mark | None = facts.get(_KEY)
        if mark is None:
            mark = facts[_KEY] = cls()
        return mark

    def receive(self, gradient: Tensor, size: float) -> None:
        """Record a gradient that was passed to the node."""
        self.arriving = size if self.passed is None else size + self.arriving
        self.passed = weakref.ref(gradient), gradient._version

    def arrived(self, gradients: Sequence[Tensor | None]) -> tuple[float, Tensor | None]:
        """Return the size of the gradient that arrived, and its tensor, which is None if several were summed."""
        size, passed = self.arriving, self.passed
        self.arriving, self.passed = math.nan, None
        only = gradients[0] if len(gradients) == 1 else None
        if passed is None:
            return largest_of(magnitudes_of(gradients)), only
        return size, only if only is passed[0]() and only is not None and only._version == passed[1] else None


class GradientTracer:
    """Finds the node that produced a non-finite gradient, once the gradient reaches a leaf of the graph.

    A node is the origin if the gradients that it received were finite. A non-finite gradient does harm only if it
    reaches a parameter or an input of the model: a mask may set it to zero on the way. A gradient that a ReLU or a
    clamp sets to zero is still reported, because the operator after it in the forward pass has an infinite
    slope at the cutoff.
    """

    def __init__(self, finder: GradientFinder, steps: int) -> None:
        self.finder = finder
        self.trail: deque[Seen] = deque(maxlen=steps)
        self.suspects: list[Origin] = []
        self.confirmed = False

    def forget(self) -> None:
        """Release the nodes of the previous pass."""
        self.trail.clear()
        self.suspects.clear()
        self.confirmed = False

    def unconfirmed(self) -> Origin | None:
        """Return the origin of the first non-finite gradient if no such gradient reached a leaf, else None."""
        return self.suspects[0] if self.suspects and not self.confirmed else None

    def enter(self, frame: ModuleNodes) -> None:
        """Remember where gradients leave the model."""
        for node in frame.inputs:
            _Mark.of(node).leaves = True

    def watch(self, observation: Observation, frame: ModuleNodes, output: Any, outer: ModuleNodes | None) -> None:
        """Watch the nodes that a module itself, not its children, created between its inputs and outputs."""
        done = set(frame.inputs)
        nodes = [getattr(leaf, "grad_fn", None) for _, leaf in named_leaves("", output)]
        starts = [node for node in nodes if node is not None and node not in done]
        stack = [*starts]
        while stack:
            node = stack.pop()
            if node in done:
                continue
            done.add(node)
            inner = frame.children.get(node)
            if inner is not None:
                stack.extend(inner)
                continue
            marks = []
            for following, _ in node.next_functions:
                mark = _mark_of(following)
                marks.append(mark)
                if mark is not None and not mark.is_leaf:
                    stack.append(following)
            observation.attach.after_node(node, self._behind_node(frame, node, marks))
        if outer is not None:
            for start in starts:
                outer.children.setdefault(start, frame.inputs)

    def at_the_loss(self, gradient: Tensor) -> None:
        """Judge the gradient at an output of the model."""
        if _is_bad(gradient):
            self._confirm(self.finder.suspect("", gradient, "the gradient of the output", (), OUTSIDE, ""))

    def _behind_node(self, frame: ModuleNodes, node: Any, following: Sequence[_Mark | None]) -> Any:
        name, module, operator = frame.name, frame.module, node.name()
        # A hook that holds its node would keep the graph alive in a cycle, so it holds only the mark.
        mark = _Mark.of(node)
        keeps = operator in _VIEWS or (len(following) == 1 and operator.startswith(_EDGES))

        def hook(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
            # Arriving gradients were already measured when they were passed on, except sums of several gradients.
            arriving, only = mark.arrived(outputs)
            passed = _sizes(inputs, following, only, arriving, keeps)
            self._note(name, arriving, largest_of(passed))
            for after, gradient, size in zip(following, inputs, passed, strict=False):
                if after is not None and not after.is_leaf and gradient is not None and size != -1.0:
                    after.receive(gradient, size)
            if all(map(math.isfinite, passed)):
                if mark.origin is not None and operator.startswith(_EDGES):
                    self._confirm(mark.origin)
                return
            bad = [not math.isfinite(own) for own in passed]
            first = next(own for own, is_bad in zip(inputs, bad, strict=True) if own is not None and is_bad)
            shown = name or type(module).__name__
            arrived = next((own for own in outputs if own is not None and _is_bad(own)), None)
            if arrived is None:
                path = f"the gradient that {shown} passes on"
                origin = self.finder.suspect(name, first, path, tuple(self.trail), "computed here", operator)
                self.suspects.append(origin)
            elif mark.origin is None and torch.finfo(arrived.dtype).max <= arriving < math.inf:
                # Each of the gradients was finite, but their sum may overflow.
                path = f"the sum of the finite gradients that arrive at {shown}, whose output is used several times"
                origin = self.finder.suspect(name, arrived, path, tuple(self.trail), "computed here", "")
                self.suspects.append(origin)
            elif mark.origin is not None or self.suspects:
                origin = mark.origin or self.suspects[-1]
            else:
                self.at_the_loss(first)
                return
            for after, is_bad in zip(following, bad, strict=False):
                if is_bad and after is not None:
                    if after.leaves:
                        self._confirm(after.origin or origin)
                    elif after.origin is None:
                        after.origin = origin

        return hook

    def _note(self, name: str, arrived: float, passed: float) -> None:
        trail = self.trail
        if not trail or trail[-1].layer != name:
            trail.append(Seen(name, arrived, passed, "g"))
        elif not math.isnan(passed):
            trail[-1] = Seen(name, trail[-1].input, larger(trail[-1].output, passed), "g")

    def _confirm(self, origin: Origin) -> None:
        self.confirmed = True
        self.finder.backward(origin)


# The node of a parameter outlives the pass, so no mark is stored there.
_PARAMETER = _Mark(leaves=True, is_leaf=True)


def _mark_of(node: Any) -> _Mark | None:
    if node is None:
        return None
    # Linear layers transpose their weight.
    behind = node.next_functions[0][0] if node.name() == "TBackward0" else node
    return _PARAMETER if hasattr(behind, "variable") else _Mark.of(node)


def _sizes(
    gradients: Sequence[Tensor | None],
    following: Sequence[_Mark | None],
    known: Tensor | None,
    size: float,
    keeps: bool,
) -> list[float]:
    """Return the largest magnitude of each gradient that a node passes on; -1 where there is no gradient.

    `size` is the largest magnitude of `known`. If the node keeps all values or sets some to zero, `size` is an upper
    bound, and the gradient is not read again. If the node also passes on the gradient of an activation, gradients of
    parameters are only tested for finiteness; the size of finite ones is 0.
    """
    sizes = []
    keeps = keeps and known is not None and math.isfinite(size)
    only_parameters = all(after is None or after.is_leaf for after in following)
    for gradient, after in zip(gradients, following, strict=False):
        if gradient is None or unobservable(gradient) is not None:
            sizes.append(-1.0)
        elif after is not None and after.is_leaf and not only_parameters:
            sizes.append(0.0 if is_finite(gradient) else largest_magnitude(gradient))
        elif gradient is known or keeps:
            sizes.append(size)
        else:
            known, size = gradient, largest_magnitude(gradient)
            sizes.append(size)
    return sizes


def _is_bad(gradient: Tensor) -> bool:
    return unobservable(gradient) is None and not math.isfinite(largest_magnitude(gradient))

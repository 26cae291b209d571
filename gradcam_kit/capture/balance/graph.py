"""The part of an autograd graph between captured tensors and scores: nodes, their inputs, and their users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def kind(node: Any) -> str:
    """Return the name of a node's operation, such as "Mul" for "MulBackward0"."""
    return str(node.name()).rstrip("0123456789").removesuffix("Backward")


@dataclass(frozen=True)
class Graph:
    """All nodes whose results depend on given tensors.

    Attributes:
        nodes: every node that depends on the tensors, once, after all of its inputs.
        origins: the nodes whose results are the given tensors.
        data: `nodes` and `origins`. Everything else is treated as constant, even parameters that require a gradient.
        users: maps a node to the nodes that use its result, each with the index of the input.
    """

    nodes: tuple[Any, ...]
    origins: frozenset[Any]
    data: frozenset[Any]
    users: Mapping[Any, Sequence[tuple[Any, int]]]

    @classmethod
    def between(cls, scores: Tensor, tensors: Sequence[Tensor]) -> Graph:
        """Build the graph by walking from `scores` back to `tensors`."""
        produced = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
        leaves = {id(tensor) for tensor in tensors if tensor.grad_fn is None}
        ordered: list[Any] = []
        origins: set[Any] = set()
        data: set[Any] = set()
        seen: set[Any] = set()
        pending: list[tuple[Any, bool]] = [(scores.grad_fn, False)]
        while pending:
            node, is_done = pending.pop()
            if node is None or (node in seen and not is_done):
                continue
            if not is_done:
                seen.add(node)
                pending.append((node, True))
                pending.extend((source, False) for source, _ in node.next_functions)
                continue
            if node in produced or id(getattr(node, "variable", None)) in leaves:
                origins.add(node)
                data.add(node)
            if any(source in data for source, _ in node.next_functions):
                data.add(node)
                ordered.append(node)
        users: dict[Any, list[tuple[Any, int]]] = {}
        for node in ordered:
            for place, (source, _) in enumerate(node.next_functions):
                if source in data:
                    users.setdefault(source, []).append((node, place))
        return cls(tuple(ordered), frozenset(origins), frozenset(data), users)

    def behind(self, tensors: Iterable[Tensor]) -> Graph:
        """Return the part of the graph that depends on these tensors."""
        own = list(tensors)
        produced = {tensor.grad_fn for tensor in own if tensor.grad_fn is not None}
        leaves = {id(tensor) for tensor in own if tensor.grad_fn is None}
        origins = {one for one in self.origins if one in produced or id(getattr(one, "variable", None)) in leaves}
        reached = self.using(origins)
        nodes = tuple(node for node in self.nodes if node in reached)
        return Graph(nodes, frozenset(origins), frozenset(reached | origins), self.users)

    def using(self, start: Iterable[Any]) -> set[Any]:
        """Return the nodes that use the results of the start nodes, directly or through other nodes."""
        reached: set[Any] = set()
        pending = list(start)
        while pending:
            for node, _ in self.users.get(pending.pop(), ()):
                if node not in reached:
                    reached.add(node)
                    pending.append(node)
        return reached

    def inputs(self, node: Any) -> dict[int, Any]:
        """Return the inputs of a node that depend on the tensors, by index."""
        sources = enumerate(node.next_functions)
        return {place: source for place, (source, _) in sources if source in self.data}

"""Find the layers on every path from input to output; only their gradients can be compared over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def on_every_path(outputs: Sequence[Any], layers: Mapping[str, Any]) -> set[str]:
    """Return the layers whose nodes lie on every path of the graph from the outputs to the first layer.

    A node is on every path if the number of paths to it times the number of paths from it is the number of all paths.

    Args:
        outputs: nodes of the model's outputs.
        layers: name -> node of the layer's output, in the order in which the layers ran.
    """
    starts = list(dict.fromkeys(node for node in outputs if node is not None))
    order = _topological(starts)
    if not order or not layers:
        return set()
    reaching = dict.fromkeys(order, 0)
    for node in starts:
        reaching[node] += 1
    for node in order:
        for following, _ in node.next_functions:
            if following in reaching:
                reaching[following] += reaching[node]
    first = next((node for node in layers.values() if reaching.get(node)), None)
    if first is None:
        return set()
    leaving = dict.fromkeys(order, 0)
    leaving[first] = 1
    for node in reversed(order):
        if node is not first:
            leaving[node] = sum(leaving.get(following, 0) for following, _ in node.next_functions)
    total = reaching[first]
    return {name for name, node in layers.items() if node in reaching and reaching[node] * leaving[node] == total}


def _topological(starts: Sequence[Any]) -> list[Any]:
    """Return all nodes that can be reached from `starts`, in topological order."""
    done: set[Any] = set()
    order: list[Any] = []
    for start in starts:
        if start in done:
            continue
        done.add(start)
        stack = [(start, iter(start.next_functions))]
        while stack:
            node, following = stack[-1]
            fresh = next((one for one, _ in following if one is not None and one not in done), None)
            if fresh is None:
                order.append(node)
                stack.pop()
            else:
                done.add(fresh)
                stack.append((fresh, iter(fresh.next_functions)))
    return order[::-1]

"""Balanced gradients, LibraGrad: Mehri et al., CVPR 2025, https://arxiv.org/abs/2411.16760.

Operations between the layer and the model's output are treated as linear in their inputs: their factors (denominators
of normalizations, gates, attention) are held constant at their values for this image. The target, and operations
without a rule, are differentiated exactly. Forward values do not change: hooks on the nodes of one forward pass's graph
replace the gradients in the backward pass, so neither modules nor functions are modified.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.balance.constants import EXACT, Action, actions
from gradcam_kit.capture.balance.graph import Graph, kind
from gradcam_kit.capture.balance.rules import OWN_RULES, rule_of
from gradcam_kit.errors import CaptureError

_log = logging.getLogger("gradcam_kit")

Plan = dict[Any, Action]
"""The actions of a backward pass, by the node whose gradients they change."""


@contextmanager
def balanced(scores: Tensor, origins: Sequence[Tensor], outputs: Sequence[Tensor] = ()) -> Iterator[None]:
    """Hold denominators, gates and attention constant in backward passes from `scores` inside the block.

    Args:
        scores: the scores to differentiate.
        origins: the captured tensors of a layer. Tensors that do not depend on these are constant.
        outputs: outputs of the model. The target computed from them is differentiated exactly, except for the norms of
            similarities.

    Raises:
        CaptureError: a part of the graph is hidden by a reentrant checkpoint, compiled code or a custom function.
    """
    graph = _visible(Graph.between(scores, origins))
    with following(_plan(graph, _target(graph, outputs))):
        yield


@contextmanager
def following(plan: Plan) -> Iterator[None]:
    """Apply the plan to backward passes inside the block."""
    with holding_hooks() as attach:
        for node, action in plan.items():
            attach.after_node(node, rule_of(node, action))
        yield


def shared_passes(
    scores: Tensor, layers: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor] = ()
) -> list[tuple[list[int], Plan]]:
    """Return the groups of layers that can share one backward pass, as indices, with the plan of each pass.

    Whether a factor is a gate, or a product is split into halves, depends on which factors depend on the layer. Layers
    whose plans differ get separate passes, so that the gradients at a layer do not depend on the other layers.

    Args:
        scores: the scores to differentiate.
        layers: the captured tensors of each layer.
        outputs: as in `balanced`.

    Raises:
        CaptureError: as in `balanced`.
    """
    everything = _visible(Graph.between(scores, [tensor for layer in layers for tensor in layer]))
    target = _target(everything, outputs)
    plan = _plan(everything, target)
    together: list[int] = []
    apart: list[tuple[list[int], Plan]] = []
    for place, layer in enumerate(layers):
        graph = everything.behind(layer) if len(layers) > 1 else everything
        if not _is_mixed(graph, everything):
            together.append(place)
            continue
        own = _plan(graph, target)
        if all(own.get(node) == plan.get(node) for node in graph.nodes):
            together.append(place)
        else:
            apart.append(([place], own))
    return [(together, plan), *apart] if together else apart


def _target(graph: Graph, outputs: Sequence[Tensor]) -> set[Any]:
    """Return the nodes that compute the target from the model's outputs."""
    return graph.using(output.grad_fn for output in outputs if output.grad_fn is not None)


def _plan(graph: Graph, target: Set[Any]) -> Plan:
    plan = actions(graph, OWN_RULES, target)
    unknown = {kind(node) for node in graph.nodes if node not in plan and node not in target} & EXACT
    if unknown:
        _log.debug(
            "balanced gradients differentiate %s exactly, so the map need not add up to the score",
            ", ".join(sorted(unknown)),
        )
    return plan


def _is_mixed(part: Graph, everything: Graph) -> bool:
    """Whether a node after a layer also has an input that depends only on other layers."""
    sources = (source for node in part.nodes for source, _ in node.next_functions)
    return any(source in everything.data and source not in part.data for source in sources)


def _visible(graph: Graph) -> Graph:
    """Return the graph, or raise CaptureError if operations are hidden in one of its nodes."""
    for node in graph.nodes:
        name = str(node.name())
        way_out = next((said for start, said in _HIDING.items() if name.startswith(start)), "")
        if not way_out and isinstance(node, BackwardCFunction) and name not in _TRANSPARENT:
            way_out = "switch off fused kernels of other libraries (flash-attn, xformers, apex)"
        if way_out:
            raise CaptureError(
                f"balanced gradients need to see every operation after the layer, but {name.removesuffix('Backward')} "
                f'hides its operations; {way_out}, or use gradient_rule="exact"'
            )
    return graph


_HIDING = {
    "CheckpointFunction": "use torch.utils.checkpoint with use_reentrant=False",
    "CompiledFunction": "run the model uncompiled",
}
_TRANSPARENT = {"BackwardHookFunctionBackward"}
"""Custom functions that pass gradients through unchanged: those of the user's full backward hooks."""

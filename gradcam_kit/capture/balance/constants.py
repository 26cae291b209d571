"""The constants of balanced gradients: denominators, attention, and the gates of products."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import torch

from gradcam_kit.capture.balance.graph import Graph, kind


class Action(NamedTuple):
    """The change to the gradients that a node passes to its inputs.

    `kind` is "zeros" (all zero), "without" (none to the inputs at `places`), "halves" (half to each of the inputs at
    `places`) or "own" (by the rule of the operation).
    """

    kind: str
    places: tuple[int, ...] = ()


PRODUCTS = {
    "Mul": (0, 1), "Bmm": (0, 1), "Mm": (0, 1), "Mv": (0, 1), "Dot": (0, 1),
    "Addmm": (1, 2), "Addcmul": (1, 2), "Baddbmm": (1, 2), "Addbmm": (1, 2), "Addmv": (1, 2),
}  # fmt: skip
"""Maps each product to the indices of the inputs that are its factors."""

_LAYERS = {"Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution", "Linear", "MkldnnLinear"}
_LAYERS |= PRODUCTS.keys() - {"Mul", "Addcmul"}
"""Operations of linear layers. `Mul` and `Addcmul` are left out, because a product with a constant only scales."""

_NORMS = {"Norm", "LinalgVectorNorm"}
_DENOMINATORS = {"Rsqrt", "Sqrt", "Reciprocal", "Std", *_NORMS}
_DIVISORS = {"Div": (1,), "Addcdiv": (2,)}
_FUSED_ATTENTION = "ScaledDotProduct"
"""Prefix of the names of all fused attention kernels, whose inputs are query, key, value and mask."""
_SOFTMAX = ("Softmax", "SafeSoftmax")
_GATES = ("Sigmoid", "Hardsigmoid", "Erf", "Tanh")
"""Bounded functions, the preferred gates first: in tanh(a) sigmoid(b), the sigmoid is the gate."""

EXACT = {
    "Sigmoid", "Softmax", "SafeSoftmax", "LogSoftmax", "Erf", "Exp", "Exp2", "Expm1", "Log", "Log1P", "Log2", "Log10",
    "LogSigmoid", "Logsumexp", "Softplus", "Sin", "Cos", "Prod", "Cumprod", "Var", "VarMean", "Lerp", "Atan", "Asinh",
    "ThnnFusedLstmCell", "MkldnnRnnLayer", "CudnnRnn", "GridSampler2D", "GridSampler3D",
}  # fmt: skip
"""Nonlinear functions without a rule, which are differentiated exactly unless they are gates or attention."""

_NONLINEAR = EXACT | _DENOMINATORS | {
    "StdMean", "Tanh", "Hardsigmoid", "Relu", "Gelu", "Silu", "Hardswish", "Mish", "Elu", "Celu", "Glu", "Pow",
    "NativeLayerNorm", "NativeGroupNorm", "NativeBatchNorm", "CudnnBatchNorm", "FusedRmsNorm", "Hardtanh", "LeakyRelu",
    "PreluKernel", "Threshold", "Clamp", "ClampMin", "ClampMax", "MaxPool2DWithIndices",
}  # fmt: skip
"""Operations that end the search from a gate to its product."""


def actions(graph: Graph, own: Mapping[str, Any], target: Set[Any] = frozenset()) -> dict[Any, Action]:
    """Return the action for each node whose gradients change; a ReLU network has no such node.

    Args:
        graph: the nodes that depend on the layers.
        own: the operations that have their own rule.
        target: the nodes of the target, after the model. Their gradients are exact, because they are not a part of the
            model. Norms are an exception, because a cosine does not change when the embedding is scaled.
    """
    cut = _cut(graph, target)
    found = {node: Action("zeros") for node in cut}
    reaching = _reaching(graph, cut, graph.origins, target)
    # An origin that is itself a gate, such as attention, is a factor of its product and not a second path to it.
    live = _reaching(graph, cut, graph.origins - cut, target)
    for node in graph.nodes:
        name = kind(node)
        if node in cut or node in target:
            continue
        if places := _constant_inputs(name):
            found[node] = Action("without", places)
        elif factors := _factors(graph, node):
            if dead := tuple(place for place, source in factors.items() if source not in reaching):
                if len(dead) == 1:
                    found[node] = Action("without", dead)
            elif all(source in live for source in factors.values()):
                found[node] = Action("halves", tuple(factors))
        elif name in own and getattr(node, "_saved_training", True):  # a batch norm in eval mode is linear
            found[node] = Action("own")
    return found


def _constant_inputs(name: str) -> tuple[int, ...]:
    """Return the indices of an operation's inputs that are held constant, even if they depend on the layers."""
    return (0, 1, 3) if name.startswith(_FUSED_ATTENTION) else _DIVISORS.get(name, ())


def _factors(graph: Graph, node: Any) -> dict[int, Any]:
    """Return both factors of a product by input index, or an empty dict unless both depend on the layers."""
    places = PRODUCTS.get(kind(node), ())
    inputs = graph.inputs(node) if places else {}
    return {place: inputs[place] for place in places} if places and all(place in inputs for place in places) else {}


def _reaching(graph: Graph, cut: set[Any], origins: Set[Any], target: Set[Any]) -> set[Any]:
    """Return the nodes from which gradients reach at least one of the origins."""
    reaching = set(origins)
    for node in graph.nodes:  # inputs come before the nodes that use them
        constant = () if node in target else _constant_inputs(kind(node))
        sources = (source for place, source in graph.inputs(node).items() if place not in constant)
        if node not in cut and any(source in reaching for source in sources):
            reaching.add(node)
    return reaching


def _cut(graph: Graph, target: Set[Any]) -> set[Any]:
    """Return the nodes without gradients at their inputs: denominators, and gates and attention in products."""
    cut = {
        node
        for node in graph.nodes
        if kind(node) in (_NORMS if node in target else _DENOMINATORS)
        or (node not in target and _is_negative_power(node))
    }
    gated: dict[Any, set[int]] = {}  # maps a product to its factors that are gates
    by_name: dict[str, list[Any]] = {}
    # An origin may itself be a gate; then the gradient at the result of the gate is requested.
    for node in dict.fromkeys((*graph.nodes, *graph.origins)):
        by_name.setdefault(kind(node), []).append(node)
    for name in (*_SOFTMAX, *_GATES):
        for node in by_name.get(name, ()):
            if node not in target and _multiplies(graph, node, target, gated, through_layers=name in _SOFTMAX):
                cut.add(node)
    return cut


def _multiplies(graph: Graph, gate: Any, target: Set[Any], gated: dict[Any, set[int]], through_layers: bool) -> bool:
    """Whether the values of a function become a factor of a product whose other factor is not a gate."""
    pending, seen, found = [gate], {gate}, False
    while pending:
        for user, place in graph.users.get(pending.pop(), ()):
            if user in target:
                continue
            name = kind(user)
            factors = _factors(graph, user)
            if place in factors:
                gates = gated.setdefault(user, set())
                if gates <= {place}:
                    gates.add(place)
                    found = True
            elif user not in seen and name not in _NONLINEAR and (through_layers or name not in _LAYERS):
                seen.add(user)
                pending.append(user)
    return found


def _is_negative_power(node: Any) -> bool:
    return kind(node) == "Pow" and bool((torch.as_tensor(node._saved_exponent) < 0).all())

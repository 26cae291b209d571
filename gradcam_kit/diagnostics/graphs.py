"""Attention of graph networks: the edges that each layer of torch_geometric used, and their coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.capture import GraphCall, run_graph
from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.maths.heads import edge_entropy, strongest_edge
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.errors import OptionError, UnknownNameError, did_you_mean
from gradcam_kit.options import whole

_IS_ONE = 1e-3


class GraphLayer:
    """Attention of one layer; its properties are those of the last call, and `calls` holds all calls in order."""

    def __init__(self, calls: list[GraphCall]) -> None:
        self.calls = tuple(calls)

    @property
    def edge_index(self) -> Int[Tensor, "2 edges"]:
        """The edges as the layer used them, with the self-loops that it added."""
        return self.calls[-1].edge_index

    @property
    def alpha(self) -> Float[Tensor, "edges heads"]:
        """The coefficient of each edge and head."""
        return self.calls[-1].alpha

    @property
    def degree(self) -> Int[Tensor, " nodes"]:
        """The number of edges that lead to each node, self-loops included."""
        return torch.bincount(self.calls[-1].targets, minlength=self.calls[-1].nodes)

    @property
    def is_normalized(self) -> bool:
        """Whether coefficients are shares that sum to 1 over the edges that lead to a node, as in all GAT layers."""
        call = self.calls[-1]
        sums = call.alpha.new_zeros(call.nodes, call.alpha.shape[1]).index_add(0, call.targets, call.alpha)
        off = (sums - 1).abs()[self.degree > 0]
        return bool((call.alpha >= 0).all()) and (off.numel() == 0 or float(off.max()) < _IS_ONE)

    @property
    def entropy(self) -> Float[Tensor, "nodes heads"]:
        """Entropy of each node's attention: 0 if it goes to one edge, 1 if it goes to all edges equally.

        NaN for nodes with fewer than two edges, and if the coefficients are not normalized.
        """
        call = self.calls[-1]
        if not self.is_normalized:
            return call.alpha.new_full((call.nodes, call.alpha.shape[1]), torch.nan)
        return edge_entropy(call.alpha, call.targets, call.nodes)

    def neighbors(self, node: int) -> tuple[Int[Tensor, " edges"], Float[Tensor, "edges heads"]]:
        """Return the nodes to which a node attends and their coefficients, by descending mean over heads.

        Raises:
            OptionError: a node that the layer does not have.
        """
        call = self.calls[-1]
        if not 0 <= whole("node", node) < call.nodes:
            raise OptionError(f"node is {node}; expected the index of one of the {call.nodes} nodes of {call.name!r}")
        own = (call.targets == node).nonzero()[:, 0]
        order = call.alpha[own].mean(1).argsort(descending=True, stable=True)
        ends = call.edge_index[0] if torch.equal(call.targets, call.edge_index[1]) else call.edge_index[1]
        return ends[own[order]], call.alpha[own[order]]


class GraphAttention(Mapping[str, GraphLayer]):
    """Attention by layer name, in the order in which the layers first ran."""

    def __init__(self, layers: dict[str, GraphLayer], thresholds: Thresholds) -> None:
        self.layers, self.thresholds = layers, thresholds

    def __getitem__(self, name: str) -> GraphLayer:
        if name not in self.layers:
            hint = did_you_mean(name, self.layers) or f"; attention was captured in {', '.join(self.layers)}"
            raise UnknownNameError(f"no attention of {name!r} was captured{hint}")
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"GraphAttention({', '.join(f'{name} {tuple(own.alpha.shape)}' for name, own in self.items())})"

    @property
    def entropy(self) -> dict[str, Float[Tensor, "nodes heads"]]:
        """Entropy of each node and head by layer."""
        return {name: layer.entropy for name, layer in self.items()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return findings about heads that attend to a single neighbor."""
        found = []
        for name, layer in self.items():
            call = layer.calls[-1]
            if not layer.is_normalized:
                continue
            largest = strongest_edge(call.alpha, call.targets, call.nodes)
            judged = largest[~largest.isnan().any(1)]
            for head, share in enumerate(judged.mean(0).tolist() if len(judged) else []):
                if share > self.thresholds.sink:
                    found.append(
                        Finding(
                            "note", "sink", name, f"Head {head} attends almost only to one neighbor of each node",
                            share, self.thresholds.sink, len(judged), advice.ONE_NEIGHBOR,
                            "convention: mean of the largest coefficient over nodes with several neighbors",
                        )
                    )  # fmt: skip
        return tuple(found)


def graph_attention(
    model: Any,
    x: Any,
    edge_index: Any,
    *args: Any,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - immutable
    **kwargs: Any,
) -> GraphAttention:
    """Return the attention coefficients of every attention layer of a graph network, with the edges that it used.

    Works for the layers of torch_geometric that return their coefficients: GATConv, GATv2Conv, TransformerConv,
    RGATConv, FAConv, and subclasses. Layers remove and append self-loops, so they may use other edges than those passed
    to the model. The model runs once in eval mode, with two calls of each attention layer, and is not changed.

    Args:
        model: the graph network, called as `model(x, edge_index, *args, **kwargs)`.
        x: node features `(nodes, features)`, or any other first argument of the model.
        edge_index: `(2, edges)`, from sources to targets, or a sparse matrix.
        args: further arguments of the model.
        thresholds: limits of the findings.
        kwargs: further keyword arguments of the model.

    Returns:
        A mapping: `attention[name].edge_index` is `(2, edges)` and `attention[name].alpha` is `(edges, heads)`.

    Raises:
        MissingExtraError: torch_geometric is not installed.
        LayerNotFoundError: the model has no layer of torch_geometric.
        CaptureError: no layer returns coefficients, or none of these layers ran.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GATConv
        >>> edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> attention = graph_attention(GATConv(4, 2, heads=3), torch.randn(3, 4), edges)
        >>> attention["GATConv"].alpha.shape  # three edges and three self-loops
        torch.Size([6, 3])
    """
    layers: dict[str, list[GraphCall]] = {}
    for call in run_graph(model, (x, edge_index, *args), kwargs):
        layers.setdefault(call.name, []).append(call)
    return GraphAttention({name: GraphLayer(calls) for name, calls in layers.items()}, thresholds)

"""Run a graph network once, and collect the coefficients and edges of every attention layer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.model.trees import map_output
from gradcam_kit.capture.observable import check_observable
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, kind_of, missing_extra

_ASKS = "return_attention_weights"
_TOLERANCE = 1e-3  # on a GPU, sums over edges are computed in arbitrary order


@dataclass(frozen=True, eq=False)
class GraphCall:
    """One call of an attention layer of torch_geometric.

    Attributes:
        name: the layer's dotted name.
        edge_index: the edges as the layer used them, with the self-loops that it added.
        alpha: the coefficient of each edge and head, in eval mode.
        targets: the target node of each edge.
        nodes: number of nodes in the layer's output.
    """

    name: str
    edge_index: Int[Tensor, "2 edges"]
    alpha: Float[Tensor, "edges heads"]
    targets: Int[Tensor, " edges"]
    nodes: int


def run_graph(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[GraphCall]:
    """Run the model once in eval mode, and each of its attention layers a second time with the same inputs.

    The second call requests the coefficients. The model's own pass does not, because its layers would then return
    tuples. Flags, buffers and random states are restored, even after an error.

    Raises:
        MissingExtraError: torch_geometric is not installed.
        LayerNotFoundError: the model has no layer of torch_geometric.
        InputError: the arguments contain no tensor.
        CaptureError: no layer can return coefficients, none of these layers ran, or a second call returned a different
            output.
    """
    try:
        with warnings.catch_warnings():  # some versions of torch_geometric warn about their own use of TorchScript
            warnings.simplefilter("ignore")
            from torch_geometric.nn import MessagePassing
    except ImportError as error:
        raise missing_extra("graph_attention needs torch_geometric", "graphs") from error
    inner = check_observable(model)
    layers = {
        module: name or type(inner).__name__
        for name, module in inner.named_modules()
        if isinstance(module, MessagePassing)
    }
    asking = {module: name for module, name in layers.items() if _gives_coefficients(module)}
    if not asking:
        message = _no_coefficients(type(inner).__name__, layers)
        raise CaptureError(message) if layers else LayerNotFoundError(message)
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    if not tensors:
        given = ", ".join(map(kind_of, (*args, *kwargs.values()))) or "nothing"
        raise InputError(f"the model is called with {given} without a tensor; expected node features (nodes, features)")
    calls: list[GraphCall] = []

    def leave(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        calls.append(_again(asking[module], module, given, named, output))

    with untouched(inner, tensors[0].device), holding_hooks() as attach:
        for module in asking:
            attach.after(module, leave, with_kwargs=True)
        own_args, own_kwargs = map_output(lambda tensor: tensor.detach().clone(), (args, dict(kwargs)))
        inner(*own_args, **own_kwargs)
    if not calls:
        raise CaptureError(
            f"none of the attention layers of {type(inner).__name__} ran ({', '.join(asking.values())}); call them in "
            "forward()"
        )
    return calls


def _gives_coefficients(module: nn.Module) -> bool:
    return _ASKS in inspect.signature(module.forward).parameters


def _no_coefficients(model: str, layers: Mapping[nn.Module, str]) -> str:
    expected = f"expected a layer whose forward accepts {_ASKS}, such as GATConv, GATv2Conv or TransformerConv"
    if not layers:
        return f"{model} has no layer of torch_geometric; {expected}"
    found = ", ".join(f"{name!r} is {kind_of(module)}" for module, name in list(layers.items())[:4])
    return f"no graph layer of {model} has attention coefficients: {found}; {expected}"


def _again(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> GraphCall:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.arguments[_ASKS] = True
    returned, (edges, alpha) = _parts(module.forward(*bound.args, **bound.kwargs))
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor) or not torch.allclose(first, returned, _TOLERANCE, _TOLERANCE, equal_nan=True):
        raise CaptureError(
            f"{name!r} returned a different output when it was called again for its coefficients; a hook "
            "may change its output, or the layer may draw random numbers in eval mode"
        )
    edge_index = _edge_index(edges)
    coefficients = alpha.detach().reshape(len(alpha), -1)
    targets = edge_index[1 if getattr(module, "flow", "source_to_target") == "source_to_target" else 0]
    return GraphCall(name, edge_index, coefficients, targets, int(returned.shape[0]))


def _parts(answer: Any) -> tuple[Tensor, tuple[Any, Tensor]]:
    """Return output, edges and coefficients. If the edges are a SparseTensor, it holds the coefficients as values."""
    returned, second = answer
    if isinstance(second, tuple):
        return returned, second
    return returned, (second, second.storage.value())


def _edge_index(edges: Any) -> Tensor:
    """Return edges as `(2, edges)`. The rows of a sparse matrix are the targets, so they become the second row."""
    if not isinstance(edges, Tensor):
        row, col, _ = edges.coo()
        return torch.stack([col, row])
    if edges.layout == torch.strided:
        return edges.detach().clone()
    indices = edges._indices() if edges.layout == torch.sparse_coo else edges.to_sparse_coo()._indices()
    return indices[:2].flip(0)

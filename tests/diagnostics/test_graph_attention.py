"""Coefficients of torch_geometric's attention layers, the edges that they used, a head that sees one neighbor."""

from __future__ import annotations

import builtins
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit.diagnostics import graph_attention
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, MissingExtraError, OptionError

with warnings.catch_warnings():  # of its own use of TorchScript
    warnings.simplefilter("ignore")
    pyg = pytest.importorskip("torch_geometric.nn")

EDGES = torch.tensor([[0, 1, 2, 3, 0, 2, 1, 1], [1, 2, 0, 0, 2, 3, 3, 1]])  # the last one is a self-loop
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two attention layers with dropout, and one without coefficients between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.GATConv(4, 3, heads=2, dropout=0.5)
        self.middle, self.last = pyg.GCNConv(6, 6), pyg.GATv2Conv(6, 3, heads=3, concat=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x, edges).relu_(), edges), edges)


def gat_by_hand(conv: Any, x: Tensor, edges: np.ndarray) -> np.ndarray:
    """Equation 3 of Velickovic et al. 2018 with loops, for edges with self-loops."""
    h = (x.numpy() @ conv.lin.weight.detach().numpy().T).reshape(len(x), conv.heads, -1)
    source, target = conv.att_src.detach().numpy()[0], conv.att_dst.detach().numpy()[0]
    alpha = np.zeros((edges.shape[1], conv.heads))
    for head in range(conv.heads):
        e = [h[j, head] @ source[head] + h[i, head] @ target[head] for j, i in edges.T]
        e = [max(value, 0.2 * value) for value in e]
        for k, (_, i) in enumerate(edges.T):
            alpha[k, head] = math.exp(e[k]) / sum(math.exp(e[m]) for m in range(len(e)) if edges[1, m] == i)
    return alpha


def test_coefficients_equal_their_formula_on_the_edges_as_used() -> None:
    model = Net().double()
    with unchanged(model, X):
        attention = graph_attention(model, X, EDGES)
    assert list(attention) == ["first", "last"]
    used = attention["first"].edge_index
    assert used.shape == (2, 7 + 5)  # the own self-loop was removed, and one for each node appended
    assert set(map(tuple, used.T.tolist())) == {*map(tuple, EDGES.T.tolist()), *((i, i) for i in range(5))}
    expected = gat_by_hand(model.first, X, used.numpy())
    np.testing.assert_allclose(attention["first"].alpha, expected, rtol=1e-9)
    assert attention["last"].alpha.shape == (12, 3)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "FAConv", "RGATConv"])
def test_every_layer_that_gives_coefficients(name: str) -> None:
    options: dict[str, Any] = {"FAConv": {}, "RGATConv": {"out_channels": 4, "num_relations": 2, "heads": 2}}.get(
        name, {"out_channels": 4, "heads": 2}
    )
    conv = getattr(pyg, name)(4, **options).double()
    args = (X, X, EDGES) if name == "FAConv" else (X, EDGES)
    extra = {"edge_type": torch.arange(8) % 2} if name == "RGATConv" else {}
    with unchanged(conv, X):
        layer = graph_attention(conv, *args, **extra)[name]
    with torch.no_grad():
        _, (edges, alpha) = conv.eval()(*args, **extra, return_attention_weights=True)
    assert torch.equal(layer.edge_index, edges)
    assert torch.equal(layer.alpha, alpha.reshape(len(alpha), -1))
    assert layer.is_normalized is (name != "FAConv")  # whose coefficients are a tanh


def test_entropy_by_node() -> None:
    layer = graph_attention(pyg.GATConv(4, 2, heads=2, add_self_loops=False).double(), X, EDGES)["GATConv"]
    assert layer.degree.tolist() == [2, 2, 2, 2, 0]
    for node in range(4):
        own = layer.alpha[EDGES[1] == node].numpy()
        np.testing.assert_allclose(layer.entropy[node], -(own * np.log(own)).sum(0) / math.log(2), rtol=1e-9)
    assert layer.entropy[4].isnan().all()
    sources, alpha = layer.neighbors(0)
    assert set(sources.tolist()) == {2, 3}
    assert alpha.mean(1)[0] >= alpha.mean(1)[1]
    with pytest.raises(OptionError, match="node is 5"):
        layer.neighbors(5)


def test_a_layer_that_runs_twice_and_one_that_looks_against_the_edges() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.GATConv(4, 4, add_self_loops=False, flow="target_to_source").double()

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.conv(self.conv(x, edges), edges)

    layer = graph_attention(Twice(), X, EDGES)["conv"]
    assert len(layer.calls) == 2
    assert layer.is_normalized
    assert layer.degree.tolist() == torch.bincount(EDGES[0], minlength=5).tolist()
    assert set(layer.neighbors(1)[0].tolist()) == {1, 2, 3}


def test_a_head_that_looks_at_one_neighbor() -> None:
    torch.manual_seed(0)
    n = 20
    x = torch.randn(n, 4)
    edges = torch.stack([torch.arange(n).repeat_interleave(4), torch.randint(0, n, (4 * n,))])
    conv = pyg.GATConv(4, 2, heads=2, add_self_loops=False)
    assert graph_attention(conv, x, edges).findings == ()
    with torch.no_grad():
        conv.att_src[0, 1] *= 1000
    (finding,) = graph_attention(conv, x, edges).findings
    assert (finding.level, finding.kind, finding.layer) == ("note", "sink", "GATConv")
    assert "Head 1 attends almost only to one neighbor" in finding.message
    assert graph_attention(conv, x, edges).entropy["GATConv"][:, 1].nanmean() < 0.1


def test_what_has_no_coefficients_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptureError, match=r"no graph layer of GCNConv .*: 'GCNConv' is a GCNConv; expected a layer"):
        graph_attention(pyg.GCNConv(4, 2).double(), X, EDGES)
    with pytest.raises(LayerNotFoundError, match="Linear has no layer of torch_geometric"):
        graph_attention(nn.Linear(4, 2), X, EDGES)
    with pytest.raises(InputError, match="without a tensor"):
        graph_attention(pyg.GATConv(4, 2), "x", "edges")
    with pytest.raises(InputError, match="expected a torch"):
        graph_attention(len, X, EDGES)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.GATConv(4, 2)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return x

    with pytest.raises(CaptureError, match=r"none of the attention layers of Unused ran \(conv\)"):
        graph_attention(Unused(), X, EDGES)
    model = Net().double()
    with pytest.raises(IndexError), unchanged(model, X):
        graph_attention(model, X, EDGES + 99)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "torch_geometric":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install -e \"\.\[graphs\]\""):
        graph_attention(nn.Linear(4, 2), X, EDGES)

"""Planted faults 24 to 27 and 34: attention heads, gates, coefficients of a graph, and levels of a pyramid."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults.fault import fault
from gradcam_kit.diagnostics import capture_attention, graph_attention, pyramid_levels, trace_recurrent

HEADS, WIDTH = 4, 16


class Encoder(nn.Module):
    """A single multi-head attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]  # type: ignore[no-any-return]


def _heads(model: Encoder) -> Any:
    x = torch.randn(6, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 4.0  # the class token is the same for all samples
    with torch.no_grad(), capture_attention(model) as attention:
        model(x)
    return attention.findings


@fault(24, "two heads have the same weights", at="attn", tool="capture_attention",
       says=("note", "redundant-heads", "attn"))  # fmt: skip
def identical_heads(planted: bool) -> Any:
    model, d = Encoder(), WIDTH // HEADS
    if planted:
        with torch.no_grad():
            for part in (0, WIDTH):  # queries and keys
                for own in (model.attn.in_proj_weight, model.attn.in_proj_bias):
                    own[part + 2 * d : part + 3 * d] = own[part : part + d]
    return _heads(model)


@fault(25, "a head rests on the class token", at="attn", tool="capture_attention", says=("note", "sink", "attn"))
def stuck_head(planted: bool) -> Any:
    model = Encoder()
    if planted:
        with torch.no_grad():  # constant queries of head 1, which only the key of the class token matches
            model.attn.in_proj_weight[4:8] = 0
            model.attn.in_proj_bias[4:8] = 3.0
            model.attn.in_proj_weight[20:24] = 0.5
    return _heads(model)


class Tagger(nn.Module):
    """An LSTM with a given bias of the forget gate, followed by a head."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)
        nn.init.constant_(self.lstm.bias_ih_l0[8:16], forget)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]


def _gates(forget: float) -> Any:
    return trace_recurrent(Tagger(forget), torch.randn(6, 10, 3)).findings


@fault(26, "the forget gate is stuck at 1 (bias 20)", at="lstm.bias_ih_l0", tool="trace_recurrent",
       says=("warn", "stuck-gate", "lstm"))  # fmt: skip
def forgets_nothing(planted: bool) -> Any:
    return _gates(20.0 if planted else 0.0)


@fault(26, "the forget gate is stuck at 0 (bias -20)", at="lstm.bias_ih_l0", tool="trace_recurrent",
       says=("warn", "stuck-gate", "lstm"))  # fmt: skip
def forgets_all(planted: bool) -> Any:
    return _gates(-20.0 if planted else 0.0)


class Graph(nn.Module):
    """A graph attention network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():  # torch_geometric warns about its own use of TorchScript
            warnings.simplefilter("ignore")
            conv: Any = import_module("torch_geometric.nn").GATConv
        self.first = conv(4, 4, heads=2, add_self_loops=False)
        self.last = conv(8, 2, heads=1, add_self_loops=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.last(self.first(x, edges).relu(), edges)  # type: ignore[no-any-return]


@fault(27, "a head of a graph layer looks at one neighbor", at="first.att_src", tool="graph_attention",
       says=("note", "sink", "first"))  # fmt: skip
def one_neighbor(planted: bool) -> Any:
    n, model = 20, Graph()
    targets = (torch.arange(n)[:, None] + torch.arange(1, 5)) % n
    edges = torch.stack([torch.arange(n).repeat_interleave(4), targets.flatten()])
    if planted:
        model.first.att_src.data[0, 1] *= 1000
    return graph_attention(model, torch.randn(n, 4), edges).findings


@fault(34, "a level of a pyramid has anchors that match nothing", at="anchor_generator", tool="pyramid_levels",
       says=("warn", "dead", "backbone:2"))  # fmt: skip
def level_without_anchors(planted: bool) -> Any:
    detection: Any = import_module("torchvision.models.detection")
    anchors: Any = import_module("torchvision.models.detection.anchor_utils").AnchorGenerator
    model = detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=128
    )
    if planted:
        sizes = [(s, 1.26 * s, 1.59 * s) for s in (32.0, 64.0, 1e5, 256.0, 512.0)]
        model.anchor_generator = anchors(sizes, ((0.5, 1.0, 2.0),) * 5)
    generator = torch.Generator().manual_seed(0)
    return pyramid_levels(model, [torch.rand(3, *size, generator=generator) for size in ((72, 96), (80, 60))])

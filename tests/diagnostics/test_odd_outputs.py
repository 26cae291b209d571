"""Outputs that are not plain tensors: trees are named leaf by leaf, and what has no statistics is listed."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from models import Built
from torch import Tensor, nn

from gradcam_kit.diagnostics import ModelDiagnostics, capture_features, find_nonfinite
from gradcam_kit.diagnostics.units import sample_axis

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@dataclass
class Answer:
    logits: Tensor
    states: tuple[Tensor, Tensor]
    extra: Tensor | None = None


Pair = namedtuple("Pair", "scores count")


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def model_output(x: Tensor) -> Any:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    return outputs.SequenceClassifierOutput(logits=2 * x, hidden_states=(x, 3 * x))


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8)


TREES = {
    "tuple": (lambda x: (x, 2 * x), ["odd[0]", "odd[1]"]),
    "list": (lambda x: [x, [2 * x]], ["odd[0]", "odd[1][0]"]),
    "dict": (lambda x: {"logits": x, "aux": {"map": 2 * x}}, ["odd.logits", "odd.aux.map"]),
    "named tuple": (lambda x: Pair(x, torch.ones(3, dtype=torch.long)), ["odd.scores"]),
    "dataclass": (lambda x: Answer(2 * x, (x, 3 * x)), ["odd.logits", "odd.states[0]", "odd.states[1]"]),
    "ModelOutput": (model_output, ["odd.logits", "odd.hidden_states[0]", "odd.hidden_states[1]"]),
}

SKIPPED = {
    "nested": (lambda x: torch.nested.as_nested_tensor([x[0], x[1, :3]], layout=torch.jagged), "jagged"),
    "quantized": (quantized, "quantized"),
    "sparse": (lambda x: x.detach().to_sparse(), "sparse"),
    "complex": (lambda x: x.to(torch.cfloat), "complex64"),
    "integer": (lambda x: x.long(), "int64"),
    "boolean": (lambda x: x > 0, "bool"),
    "empty": (lambda x: x[:0], "empty"),
    "string": (lambda x: "cat", "a str, not a tensor"),
}


@pytest.mark.parametrize("kind", TREES)
def test_leaves_have_the_names_of_their_places(kind: str) -> None:
    make, names = TREES[kind]
    model = Built(lambda m, x: (m.odd(m.lin(x)), m.lin(x))[1], lin=nn.Linear(6, 6), odd=Returns(make))
    with ModelDiagnostics(model) as diagnostics, find_nonfinite(model), capture_features(model, "odd") as features:
        model(X).sum().backward()
    report = diagnostics.report()
    assert [row.name for row in report.layers if row.name.startswith("odd")] == names
    assert all(row.n == 4 and row.elements == 24 for row in report.layers if row.name.startswith("odd"))
    assert type(features["odd"].output) is type(make(X))


def test_a_leaf_of_a_dataclass_that_is_not_finite_has_its_name() -> None:
    model = Built(lambda m, x: m.odd(m.lin(x)).states[1], lin=nn.Linear(6, 6))
    model.odd = Returns(lambda x: Answer(x, (x, (x.relu() * 0).log())))
    with find_nonfinite(model, raise_error=False) as origin:
        model(X)
    assert (origin.forward.layer, origin.forward.path) == ("odd", "odd.states[1]")


@pytest.mark.filterwarnings("ignore:.*(quantiz|[Nn]ested)")
@pytest.mark.parametrize("kind", SKIPPED)
def test_what_has_no_statistics_is_listed_with_the_reason(kind: str) -> None:
    make, reason = SKIPPED[kind]
    model = Built(lambda m, x: (m.odd(m.lin(x)), m.head(x))[1], lin=nn.Linear(6, 6), odd=Returns(make))
    model.head = nn.Linear(6, 2)
    with ModelDiagnostics(model) as diagnostics, capture_features(model) as features, find_nonfinite(model) as origin:
        model(X).sum().backward()
    report = diagnostics.report()
    assert [row.name for row in report.layers] == ["lin", "head"]
    assert reason in dict(report.skipped)["odd"]
    assert reason in features.skipped["odd"]
    assert not any(finding.layer == "odd" for finding in report.findings)
    assert not origin
    assert reason in str(report)


@pytest.mark.parametrize("batch_first", [True, False])
def test_weights_of_attention_have_their_samples_first(batch_first: bool) -> None:
    module = nn.MultiheadAttention(6, 2, batch_first=batch_first)
    assert sample_axis(module, "attention[0]") == (0 if batch_first else 1)
    assert sample_axis(module, "attention[1]") == 0
    assert sample_axis(nn.LSTM(6, 2, batch_first=batch_first), "lstm[1][0]") == 1

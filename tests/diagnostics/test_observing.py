"""Which passes are observed, and which layers patterns stand for."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from models import Built
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradcam_kit.capture.model.layers import select_layers
from gradcam_kit.capture.observable import check_observable, unobservable
from gradcam_kit.capture.observing import Call, Observer, observe
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError


class Seen(Observer):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, bool]] = []

    def leave(self, call: Call) -> None:
        self.calls.append((call.name, call.step, call.index, call.recomputed))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))


def watched(model: nn.Module, seen: Seen, **options: Any) -> Any:
    return observe(model, select_layers(check_observable(model)), seen, **options)


def test_patterns() -> None:
    model = small()
    assert list(select_layers(model)) == ["0", "1", "2.0", "2.1"]
    assert list(select_layers(model, "2*")) == ["2", "2.0", "2.1"]
    assert list(select_layers(model, nn.Linear)) == ["0", "2.0"]
    assert list(select_layers(model, [nn.Tanh, model[0]])) == ["0", "2.1"]
    assert list(select_layers(model, ("2.0", "0"))) == ["0", "2.0"]
    assert list(select_layers(nn.Linear(2, 2))) == ["Linear"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("laier1", "did you mean 'layer1'"),
        ("layer1.*.x", "no layer"),
        (nn.Conv3d, "Conv2d"),
        (["layer1", "x*"], "'x*'"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(layers: Any, said: str) -> None:
    model = Built(lambda m, x: m.layer1(x), layer1=nn.Conv2d(3, 4, 3), layer2=nn.ReLU())
    with pytest.raises(LayerNotFoundError) as caught:
        select_layers(model, layers)
    assert said in str(caught.value)
    with pytest.raises(InputError):
        select_layers(model, [])
    with pytest.raises(InputError):
        select_layers(model, 3)


def test_attention_is_a_leaf_and_parametrizations_are_not() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(3, 3)})
    nn.utils.parametrizations.weight_norm(model["linear"])
    assert list(select_layers(model)) == ["attention", "linear"]


def test_steps_and_calls_are_counted() -> None:
    shared = nn.Linear(3, 3)
    model = Built(lambda m, x: m.act(m.shared(m.shared(x))), shared=shared, act=nn.ReLU())
    seen = Seen()
    with watched(model, seen, every=2) as observation:
        for _ in range(3):
            model(torch.ones(2, 3))
    once = [("shared", 0), ("shared", 1), ("act", 0)]
    assert seen.calls == [(name, step, index, False) for step in (1, 3) for name, index in once]
    assert observation.never_ran == ()


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_recognized(reentrant: bool) -> None:
    # Without reentrance the recomputation stops at the last tensor that is needed, inside of Sigmoid.
    a = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    model = Built(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=reentrant)), a=a, b=nn.Linear(3, 1))
    seen = Seen()
    with watched(model, seen):
        model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    first, again = seen.calls[:3], seen.calls[3:]
    assert first == [("a.0", 1, 0, False), ("a.1", 1, 0, False), ("b", 1, 0, False)]
    assert again == [("a.0", 1, 1, True), ("a.1", 1, 1, True)][: 2 if reentrant else 1]


def test_other_threads_and_transforms_are_not_observed(caplog: pytest.LogCaptureFixture) -> None:
    model, seen = small(), Seen()
    with caplog.at_level(logging.WARNING), watched(model, seen) as observation:
        thread = threading.Thread(target=model, args=(torch.ones(1, 3),))
        thread.start()
        thread.join()
        torch.func.vmap(nn.Sequential(model[0], model[2]))(torch.ones(2, 3))
        torch.func.vmap(model[2])(torch.ones(2, 4))
        assert seen.calls == []
        model(torch.ones(1, 3))
    assert [name for name, *_ in seen.calls] == ["0", "1", "2.0", "2.1"]
    assert sum("vmap" in note for note in observation.notes) == 1


def test_a_layer_called_by_itself_counts() -> None:
    model, seen = small(), Seen()
    with watched(model, seen):
        model[0](torch.ones(1, 3))
    assert seen.calls == [("0", 1, 0, False)]


def test_the_closed_fast_path_stays_and_is_said() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Built(lambda m, x: m.head(m.encoder(x)), encoder=nn.TransformerEncoder(layer, 2), head=nn.Linear(8, 2))
    x, seen = torch.randn(3, 5, 8), Seen()
    model.eval()
    with torch.no_grad():
        expected = model(x)
        with watched(model, seen) as observation:
            assert torch.equal(model(x), expected)
    assert [name for name, *_ in seen.calls] == ["head"]
    assert any("fast path" in note for note in observation.notes)
    model.train()
    with watched(model, seen):
        model(x)
    assert "encoder.layers.1.linear2" in {name for name, *_ in seen.calls}


def test_compiled_models_run_eagerly() -> None:
    model, seen = small(), Seen()
    compiled = torch.compile(model, backend="eager")
    with watched(compiled, seen) as observation:
        compiled(torch.ones(2, 3))
    assert len(seen.calls) == 4
    assert any("eager" in note for note in observation.notes)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_models_that_cannot_be_observed() -> None:
    model = small()
    exported = torch.export.export(model, (torch.ones(2, 3),))
    for given in (
        nn.DataParallel(model),
        torch.jit.trace(model, torch.ones(1, 3)),
        exported,
        exported.module(),
        torch.compile(model, fullgraph=True, backend="eager"),
        "resnet18",
    ):
        with pytest.raises(InputError, match=r"pass|expected"):
            check_observable(given)


def test_a_replaced_module_is_an_error() -> None:
    model, seen = small(), Seen()
    with pytest.raises(CaptureError, match="replaced inside the block: 0"), watched(model, seen):
        model[0] = nn.Linear(3, 4)


def test_names_and_reasons() -> None:
    output = {"logits": torch.ones(1), "states": (torch.ones(1), [torch.ones(1)]), "n": 3}
    assert [name for name, _ in named_leaves("m", output)] == ["m.logits", "m.states[0]", "m.states[1][0]", "m.n"]
    reasons = [
        (3, "an int"), (torch.ones(2, dtype=torch.long), "int64"), (torch.ones(2, dtype=torch.cfloat), "complex64"),
        (torch.ones(2, 2).to_sparse(), "sparse"), (torch.empty(0, 3), "empty"), (torch.ones(2, device="meta"), "meta"),
    ]  # fmt: skip
    for value, words in reasons:
        assert words in str(unobservable(value))
    assert unobservable(torch.ones(2)) is None

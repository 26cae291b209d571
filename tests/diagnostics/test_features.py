"""capture_features: what is kept, for how long, and that nothing of the model changes."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from models import Built, TinyCNN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradcam_kit.diagnostics.features import capture_features
from gradcam_kit.errors import CaptureError, LayerNotFoundError, MemoryLimitError, OptionError, UnknownNameError


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return TinyCNN()


def test_outputs_are_copies_in_order_of_execution() -> None:
    model, images = cnn(), torch.randn(2, 3, 8, 8)
    with capture_features(model) as features:
        model(images)
    assert list(features) == ["stage1", "relu1", "stage2", "relu2", "fc"]
    before = torch.nn.functional.conv2d(images, model.stage1.weight, model.stage1.bias, padding=1)
    assert torch.equal(features["stage1"].output, before)  # relu1 works in place
    assert torch.equal(features["relu1"].output, before.relu())
    assert (features["stage1"].shape, features["stage1"].unit_axis) == ((2, 6, 8, 8), 1)
    assert not features["fc"].output.requires_grad


def test_shared_modules_have_one_record_per_call() -> None:
    model = Built(lambda m, x: m.lin(m.act(m.lin(x))), lin=nn.Linear(3, 3), act=nn.ReLU(inplace=True))
    x = torch.randn(2, 3)
    with capture_features(model, what="both", gradients=True) as features:
        model(x).sum().backward()
    calls = features["lin"].calls
    assert len(calls) == 2
    assert torch.equal(calls[0].input, x)
    assert torch.equal(calls[1].input, calls[0].output.relu())
    assert torch.equal(calls[1].gradient, torch.ones(2, 3))
    expected = (torch.ones(2, 3) @ model.lin.weight.detach()) * (calls[0].output > 0)
    assert torch.allclose(calls[0].gradient, expected)


def test_trees_keep_their_structure() -> None:
    lstm = nn.LSTM(3, 4, batch_first=True)
    model = Built(lambda m, x: {"logits": m.lstm(x)[0].mean(1), "n": torch.tensor([3])}, lstm=lstm)
    with capture_features(model, "lstm", gradients=True) as features:
        model(torch.randn(2, 5, 3))["logits"].sum().backward()
    output, (hidden, cell) = features["lstm"].output
    assert (output.shape, hidden.shape, cell.shape) == ((2, 5, 4), (1, 2, 4), (1, 2, 4))
    gradient, states = features["lstm"].gradient
    assert torch.allclose(gradient, torch.full((2, 5, 4), 0.2))
    assert states == (None, None)


def test_what_is_no_feature_is_listed() -> None:
    model = Built(lambda m, x: (m.arg(x), m.nothing(x), m.real(x))[2], arg=Argmax(), nothing=Nothing(), real=nn.ReLU())
    model.unused = nn.Linear(2, 2)
    with capture_features(model) as features:
        model(torch.randn(2, 3))
    assert list(features) == ["real"]
    assert "int64" in features.skipped["arg"]
    assert "nothing" in features.skipped
    assert features.never_ran == ("unused",)
    with pytest.raises(CaptureError, match="did not run"):
        features["unused"]
    with pytest.raises(CaptureError, match="int64"):
        features["arg"]
    with pytest.raises(UnknownNameError, match="did you mean 'real'"):
        features["reel"]


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


def test_accumulating_and_statistics() -> None:
    model, batches = cnn(), [torch.randn(n, 3, 8, 8) for n in (2, 3, 1)]
    with capture_features(model, "stage*", accumulate=True, gradients=True) as whole:
        for batch in batches:
            model(batch).sum().backward()
    with capture_features(model, "stage*", keep="stats") as statistics, capture_features(model, "stage*") as single:
        for batch in batches:
            model(batch)
    together = whole["stage2"].output
    assert together.shape == (6, 6, 4, 4)
    assert whole["stage2"].gradient.shape == (6, 6, 4, 4)
    assert len(single["stage2"].calls) == 3
    assert torch.equal(torch.cat([call.output for call in single["stage2"].calls]), together)
    own = statistics["stage2"].statistics
    assert own.mean == pytest.approx(float(together.mean()), rel=1e-5)
    assert own["std"] == pytest.approx(float(together.std(correction=0)), rel=1e-5)
    assert (own.min, own.max, own.n) == (float(together.min()), float(together.max()), 6)
    assert statistics["stage2"].output is None


@pytest.mark.parametrize("keep", ["device", "cpu"])
def test_the_limit_names_layer_and_way_out(keep: Any) -> None:
    model = cnn()
    with (
        pytest.raises(MemoryLimitError, match=r"'stage1' \(2, 6, 8, 8\).*keep=\"stats\"") as caught,
        capture_features(model, keep=keep, max_bytes=1000),
    ):
        model(torch.randn(2, 3, 8, 8))
    assert isinstance(caught.value, MemoryError)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bad_requests() -> None:
    for options, error in (
        ({"layers": "stage3*"}, LayerNotFoundError),
        ({"layers": ["stage*", "x*"]}, LayerNotFoundError),
        ({"max_bytes": -1}, OptionError),
    ):
        with pytest.raises(error), capture_features(cnn(), **options):
            pass


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_through_checkpoints(reentrant: bool) -> None:
    part = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    plain = Built(lambda m, x: m.part(x).sum(), part=part)
    model = Built(lambda m, x: checkpoint(m.part, x, use_reentrant=reentrant).sum(), part=part)
    x, found = torch.randn(2, 3, requires_grad=True), []
    for one in (plain, model):
        with capture_features(one, gradients=True) as features:
            one(x).backward()
        found.append([features[name].gradient for name in ("part.0", "part.1", "part.2")])
        assert all(len(features[name].calls) == 1 for name in features)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_graph_is_held() -> None:
    model, outputs = cnn(), []
    model.relu2.register_forward_hook(lambda *args: outputs.append(weakref.ref(args[-1])))
    with capture_features(model, gradients=True) as features:
        for _ in range(3):
            model(torch.randn(2, 3, 8, 8)).sum().backward()
        gc.collect()
        assert all(one() is None for one in outputs)
        copied = copy.deepcopy(model)
        copied(torch.randn(2, 3, 8, 8))
        assert len(features["fc"].calls) == 3


def test_nothing_changes() -> None:
    images, losses = torch.randn(4, 3, 8, 8), []
    for watched in (False, True):
        model = cnn().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            if watched:
                with capture_features(model, what="both", gradients=True):
                    loss = model(images).square().sum()
                    loss.backward()
            else:
                loss = model(images).square().sum()
                loss.backward()
            optimizer.step()
        losses.append([loss.detach(), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))

"""find_nonfinite: the first module that makes a NaN or an infinity, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Built
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from trainings import mlp

from gradcam_kit.diagnostics import find_nonfinite
from gradcam_kit.errors import NonFiniteError

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def after(function: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), Function(function), nn.Linear(8, 2))


def origin_of(model: nn.Module, x: Tensor = X, loss: Any = lambda output: output.sum()) -> Any:
    with find_nonfinite(model, raise_error=False) as origin:
        loss(model(x)).backward()
    return origin


def test_healthy_models_are_silent() -> None:
    for model in (mlp(), after(torch.sigmoid), nn.Linear(16, 2), nn.TransformerEncoderLayer(16, 2, 8)):
        assert not origin_of(model)


def test_log_of_zero_in_a_named_module() -> None:
    origin = origin_of(after(torch.log))
    assert (origin.forward.layer, origin.forward.kind, origin.forward.phase) == ("2", "inf", "forward")
    assert origin.forward.cause == "computed here"
    with pytest.raises(NonFiniteError, match="layer '2'"), find_nonfinite(model := after(torch.log)):
        model(X)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter(name: str) -> None:
    model = mlp()
    with torch.no_grad():
        getattr(model[2], name).view(-1)[0] = torch.nan
    origin = origin_of(model)
    assert (origin.forward.layer, origin.forward.cause, origin.forward.kind) == ("2", f"parameter {name}", "nan")
    assert origin.forward.sample == 0


def test_a_buffer() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    model[1].running_mean[3] = torch.nan
    origin = origin_of(model)
    assert (origin.forward.layer, origin.forward.cause) == ("1", "buffer running_mean")
    assert origin.forward.count == 4


def test_an_input() -> None:
    x = X.clone()
    x[2, 5] = torch.inf
    origin = origin_of(mlp(), x)
    assert (origin.forward.layer, origin.forward.cause, origin.forward.sample) == ("", "input", 2)


def test_an_overflow_is_seen_coming() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6))).half()
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1.0)
    origin = origin_of(model, X.abs().half())
    assert origin.forward.kind == "inf"
    assert int(origin.forward.layer) >= 2
    magnitudes = [seen.output for seen in origin.forward.trail]
    assert magnitudes == sorted(magnitudes)
    assert magnitudes[-1] > 1000


def test_only_in_the_backward_pass() -> None:
    origin = origin_of(after(torch.sqrt))  # ReLU gives exact zeros
    assert origin.forward is None
    assert (origin.backward.layer, origin.backward.phase) == ("2", "backward")
    assert not origin_of(after(lambda x: torch.sqrt(x + 1e-6)))
    with pytest.raises(NonFiniteError, match="backward pass: layer '2'"), find_nonfinite(model := after(torch.sqrt)):
        model(X).sum().backward()


def _masked_root(x: Tensor) -> Tensor:
    kept = torch.where(x > 0, x, 0.0)
    return torch.sqrt(kept)


def test_a_gradient_that_a_mask_removes_is_a_note() -> None:
    model = nn.Sequential(nn.Linear(16, 16), Function(_masked_root), nn.Linear(16, 2))
    with find_nonfinite(model) as origin:
        model(X).sum().backward()
    assert not origin
    assert all(bool(own.grad.isfinite().all()) for own in model.parameters())
    assert any("harmless" in note and "layer '1'" in note for note in origin.notes)
    unmasked = nn.Sequential(nn.Linear(16, 16), Function(lambda x: torch.sqrt(x * 0)), nn.Linear(16, 2))
    with pytest.raises(NonFiniteError, match="backward pass: layer '1'"), find_nonfinite(unmasked):
        unmasked(X).sum().backward()


def test_a_gradient_that_leaves_the_model_is_a_finding() -> None:
    generator, model = nn.Linear(16, 16), nn.Sequential(Function(lambda x: torch.sqrt(x * 0)), nn.Linear(16, 2))
    with pytest.raises(NonFiniteError, match="backward pass: layer '0'"), find_nonfinite(model):
        model(generator(X)).sum().backward()


def test_a_function_in_a_block_is_the_block_s() -> None:
    class Block(nn.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.inner, self.function = nn.Linear(16, 16), function

        def forward(self, x: Tensor) -> Tensor:
            return x + self.function(self.inner(x).relu())

    for function, phase in ((torch.log, "forward"), (torch.sqrt, "backward")):
        origin = origin_of(nn.Sequential(nn.Linear(16, 16), Block(function), nn.Linear(16, 2)))
        assert getattr(origin, phase).layer == "1"
    origin = origin_of(
        Built(lambda m, x: m.last(torch.log(m.first(x).relu())), first=nn.Linear(16, 8), last=nn.Linear(8, 2))
    )
    assert (origin.forward.layer, origin.forward.cause) == ("", "computed here")


def test_a_loss_that_is_not_finite() -> None:
    origin = origin_of(mlp(), loss=lambda output: (output.sum() * 0).log() * 0)
    assert origin.forward is None
    assert (origin.backward.layer, origin.backward.cause) == ("", "outside of any module: the loss")


@pytest.mark.parametrize("softmax", [nn.Softmax(-1), Function(lambda x: functional.softmax(x, -1))])
@pytest.mark.parametrize("full", [False, True])
def test_masks_in_front_of_a_softmax(softmax: nn.Module, full: bool) -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    mask[1] = full
    model = Built(
        lambda m, x: m.head(m.softmax(m.masked(m.scores(x)))),
        scores=nn.Linear(16, 4), masked=Function(lambda x: x.masked_fill(mask, -torch.inf)), softmax=softmax,
        head=nn.Linear(4, 2),
    )  # fmt: skip
    origin = origin_of(model)
    if full:
        assert origin.forward.layer == "softmax"
    else:
        assert not origin


def test_a_functional_softmax_takes_masked_scores() -> None:
    mask = torch.eye(4, dtype=torch.bool)
    parts = {"scores": nn.Linear(16, 4), "masked": Function(lambda x: x.masked_fill(mask, -torch.inf))}
    model = Built(lambda m, x: m.head(functional.softmax(m.masked(m.scores(x)), -1)), **parts, head=nn.Linear(4, 2))
    assert not origin_of(model)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    model = Built(
        lambda m, x: m.attention(x, x, x, attn_mask=mask.float().masked_fill(mask, -torch.inf))[0], attention=attention
    )
    assert not origin_of(model, X[None])


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_of_a_checkpoint(reentrant: bool) -> None:
    part = after(torch.sqrt)[1:]
    model = Built(
        lambda m, x: checkpoint(m.part, m.first(x), use_reentrant=reentrant), first=nn.Linear(16, 8), part=part
    )
    origin = origin_of(model)
    assert origin.forward is None
    assert origin.backward.layer == "part.2"


def test_residual_uses_of_one_tensor_are_told_apart() -> None:
    parts = {"first": nn.Linear(16, 8), "act": nn.ReLU(), "conv": nn.Linear(8, 8), "root": Function(torch.sqrt)}
    model = Built(lambda m, x: m.conv(y := m.act(m.first(x))) + m.root(y), **parts)
    assert origin_of(model).backward.layer == "root"


def test_large_gradients_of_parameters_are_finite() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with find_nonfinite(model) as origin:
        (model(X).sum(0) * 1e37).sum().backward()
    assert model[1].weight.grad.isfinite().all()
    assert not model[1].weight.grad.abs().sum().isfinite()  # a sum alone would have told an infinity
    assert not origin


class NanForItsWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        bad = torch.zeros_like(ctx.saved_tensors[0])
        bad[3] = torch.nan
        return gradients[0] * ctx.saved_tensors[0], bad


def test_a_gradient_that_is_nan_for_a_parameter_alone() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return NanForItsWeight.apply(x, self.weight)

    origin = origin_of(nn.Sequential(nn.Linear(16, 8), Scale(), nn.Linear(8, 2)))
    assert (origin.backward.layer, origin.backward.kind, origin.backward.count) == ("1", "nan", 1)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [-10.0, 0.0, 10.0])
def test_the_size_behind_a_relu_is_that_of_its_output(inplace: bool, bias: float) -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace), Function(lambda x: torch.log(x * 0)), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].bias.fill_(bias)
        expected = float(model[:2](X).max())
    [seen] = [own for own in origin_of(model).forward.trail if own.layer == "1"]
    assert seen.output == expected


def test_a_hook_of_the_user_behind_a_relu_is_seen() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    model[1].register_forward_hook(lambda module, args, output: output / 0)
    assert origin_of(model).forward.layer == "1"
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    model[1].forward = lambda x: x.relu().log()
    assert origin_of(model).forward.layer == "1"


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


def test_a_sum_of_two_gradients_that_overflows() -> None:
    model = nn.Sequential(nn.Linear(16, 8), Twice(), Twice())
    origin = origin_of(model, loss=lambda output: (output * 1.2e38).sum()).backward
    assert (origin.layer, origin.cause, origin.kind, origin.operator) == ("0", "computed here", "inf", "")
    assert origin.path == "the sum of the finite gradients that arrive at 0, whose output is used several times"
    assert (origin.trail[-2].layer, origin.trail[-2].output) == ("1", pytest.approx(2.4e38, rel=1e-3))
    assert not origin_of(model, loss=lambda output: (output * 1e37).sum())


def test_an_infinite_gradient_from_outside_is_not_blamed_on_a_sum() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.body(x)
            return features, self.head(features)

    origin = origin_of(Features(), loss=lambda output: (output[0] * torch.inf).sum() + output[1].sum())
    assert origin.backward.cause == "outside of any module: the loss"


def test_an_infinite_gradient_is_not_taken_for_a_sum_when_layers_are_called_directly() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    with find_nonfinite(model, raise_error=False) as origin:
        (model[2](model[1](model[0](X))) * torch.inf).sum().backward()
    assert origin.backward.cause == "outside of any module: the loss"


def test_the_gradient_behind_a_relu_is_bounded_by_what_arrived() -> None:
    model = nn.Sequential(
        nn.Linear(16, 16), Function(lambda x: torch.sqrt(x - x)), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    origin = origin_of(model).backward
    trail = {own.layer: own for own in origin.trail}
    assert origin.layer == "1"
    assert trail["3"].input == trail["3"].output == trail["2"].input > 0


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_gradient_of_weights_that_overflows_is_found_where_inputs_are_huge(recomputed: bool) -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1e25
            return checkpoint(self.inner, x, use_reentrant=False) if recomputed else self.inner(x)

    origin = origin_of(nn.Sequential(nn.Linear(16, 16), Huge()), loss=lambda output: (output * 1e15).sum()).backward
    assert (origin.layer, origin.kind, origin.operator) == ("1.inner", "inf", "AddmmBackward0")


def test_a_graph_that_runs_backward_twice() -> None:
    model, calls = after(torch.sigmoid), []
    with find_nonfinite(model, raise_error=False) as origin:
        output = model(X)
        output.sum().backward(retain_graph=True)
        calls.append(origin.backward)
        (output * torch.nan).sum().backward()
    assert calls == [None]
    assert origin.backward.cause == "outside of any module: the loss"


def test_nothing_changes() -> None:
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 2))
        if watched:
            with find_nonfinite(model):
                model(X).sum().backward()
        else:
            model(X).sum().backward()
        results.append([*(own.grad for own in model.parameters()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

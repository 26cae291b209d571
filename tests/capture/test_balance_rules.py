"""Balanced gradients of single operations: numbers by hand, and the same function with `.detach()` at its constants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

from gradcam_kit.capture.balance.backward import balanced


def gradients(score: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The balanced gradients of a score with a graph."""
    with balanced(score, tensors):
        return list(torch.autograd.grad(score, tensors))


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def by_hand(found: Tensor, *expected: float) -> None:
    assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=1e-15)


def test_layer_norm_differentiates_the_mean_and_not_the_deviation():
    x = leaf(1.0, 3.0)  # mean 2, deviation 1
    first = F.layer_norm(x, (2,), eps=0.0)[0]
    by_hand(gradients(first, x)[0], 0.5, -0.5)
    assert (
        float((x * leaf(0.5, -0.5)).sum().detach()) == float(first.detach()) == -1
    )  # all of it; exactly it would be nothing:
    by_hand(torch.autograd.grad(F.layer_norm(x, (2,), eps=0.0)[0], x)[0], 0.0, 0.0)


def test_gelu_is_its_input_times_a_share():
    x = leaf(0.0, 1.0, -30.0)
    found = gradients(F.gelu(x).sum(), x)[0]
    by_hand(found[:2], 0.5, 0.8413447460685429)
    assert 0 <= float(found[2]) < 1e-190
    assert torch.isfinite(gradients(F.gelu(x.float()).sum(), x)[0]).all()


def test_both_factors_of_a_product_get_half():
    a, b = leaf(1.0), leaf(2.0)
    share = 1 / (1 + math.exp(-1))
    found = gradients((F.silu(a) * b).sum(), a, b)
    by_hand(found[0], share * 2 / 2)
    by_hand(found[1], share / 2)


@pytest.mark.parametrize("is_fused", [True, False])
def test_attention_of_two_tokens_is_a_constant_mixture(is_fused):
    x = leaf(0.0, 1.0)
    tokens = x.view(1, 1, 2, 1)
    if is_fused:
        output = F.scaled_dot_product_attention(tokens, tokens, tokens)
    else:
        output = (tokens @ tokens.mT).softmax(-1) @ tokens
    by_hand(gradients(output[0, 0, 1, 0], x)[0], 1 / (1 + math.e), math.e / (1 + math.e))


def dot(x: Tensor) -> Tensor:
    return x.flatten(0, 1) @ x.flatten(0, 1).mT


def norm_by_hand(x: Tensor, constant: bool = False) -> Tensor:
    share = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return x * (share.detach() if constant else share)


def centered(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    moved = x - x.mean(axes, keepdim=True)
    return moved / (moved.square().mean(axes, keepdim=True) + 1e-5).sqrt().detach()


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, steepness: float = 1.0) -> Tensor:
    value = torch.where(x > 0, scale * x, scale * alpha * torch.expm1(steepness * x))
    return x * (value / x).detach()


MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SCALE = torch.tensor([0.5, -2.0, 1.5, 1.0], dtype=torch.float64)
C = Tensor.detach
FUNCTIONS = {
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: x * (F.gelu(C(x), approximate="tanh") / C(x))),
    "gelu by hand": (lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2, lambda x: x * torch.special.ndtr(C(x))),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: x * torch.sigmoid(1.702 * C(x))),
    "silu": (F.silu, lambda x: x * C(x).sigmoid()),
    "silu in place": (lambda x: F.silu(x.clone(), inplace=True), lambda x: x * C(x).sigmoid()),
    "hardswish": (F.hardswish, lambda x: x * F.hardsigmoid(C(x))),
    "mish": (F.mish, lambda x: x * F.softplus(C(x)).tanh()),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: elu(x, 0.7)),
    "elu in place": (lambda x: F.elu(x.clone(), 0.7, inplace=True), lambda x: elu(x, 0.7)),
    "celu": (lambda x: F.celu(x, 2.0), lambda x: elu(x, 2.0, 1.0, 0.5)),
    "celu in place": (lambda x: F.celu(x.clone(), 2.0, inplace=True), lambda x: elu(x, 2.0, 1.0, 0.5)),
    "selu": (F.selu, lambda x: elu(x, 1.6732632423543772, 1.0507009873554805)),
    "tanh": (torch.tanh, lambda x: x * (C(x).tanh() / C(x))),
    "glu last": (lambda x: F.glu(x, -1), lambda x: x[..., :2] * C(x)[..., 2:].sigmoid()),
    "glu first": (lambda x: F.glu(x, 1), lambda x: x[:, :1] * C(x)[:, 1:].sigmoid()),
    "gate": (lambda x: x * torch.sigmoid(x @ MIX), lambda x: x * torch.sigmoid(C(x) @ MIX)),
    "hard gate": (lambda x: x * F.hardsigmoid(x @ MIX), lambda x: x * F.hardsigmoid(C(x) @ MIX)),
    "value and gate": (
        lambda x: torch.tanh(x @ MIX) * torch.sigmoid(x),
        lambda x: (x @ MIX) * (C(x @ MIX).tanh() / C(x @ MIX)) * C(x).sigmoid(),
    ),
    "layer norm": (lambda x: F.layer_norm(x, (4,), SCALE, SCALE), lambda x: centered(x, (2,)) * SCALE + SCALE),
    "layer norm over two axes": (lambda x: F.layer_norm(x, (2, 4)), lambda x: centered(x, (1, 2))),
    "group norm": (
        lambda x: F.group_norm(x.mT, 2, SCALE, SCALE),
        lambda x: centered(x.mT.unflatten(1, (2, 2)), (2, 3)).flatten(1, 2) * SCALE[:, None] + SCALE[:, None],
    ),
    "instance norm": (lambda x: F.instance_norm(x), lambda x: centered(x, (2,))),
    "batch norm on its batch": (
        lambda x: F.batch_norm(x.mT, None, None, SCALE, training=True),
        lambda x: centered(x.mT, (0, 2)) * SCALE[:, None],
    ),
    "rms norm": (lambda x: F.rms_norm(x, (4,), SCALE, 1e-5), lambda x: norm_by_hand(x, True) * SCALE),
    "rms norm by hand": (norm_by_hand, lambda x: norm_by_hand(x, True)),
    "normalize": (lambda x: F.normalize(x, dim=-1), lambda x: x / C(x).norm(dim=-1, keepdim=True)),
    "deviation": (lambda x: x / x.std(-1, keepdim=True), lambda x: x / C(x).std(-1, keepdim=True)),
    "deviation and mean": (
        lambda x: (x - torch.std_mean(x, -1, keepdim=True)[1]) / torch.std_mean(x, -1, keepdim=True)[0],
        lambda x: (x - x.mean(-1, keepdim=True)) / C(x).std(-1, keepdim=True),
    ),
    "response norm": (
        lambda x: x + x * (x.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True).mean(-1, keepdim=True)),
        lambda x: x + x * C(x.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True).mean(-1, keepdim=True)),
    ),
    "reciprocal": (lambda x: x * (1 + x.square()).reciprocal(), lambda x: x / (1 + C(x).square())),
    "negative power": (lambda x: x * (1 + x.square()) ** -0.5, lambda x: x * (1 + C(x).square()) ** -0.5),
    "power": (lambda x: x**3, lambda x: x * C(x).square()),
    "power of a tensor": (lambda x: x.abs() ** SCALE.abs(), lambda x: x.abs() * C(x).abs() ** (SCALE.abs() - 1)),
    "square": (lambda x: x * x, lambda x: x * C(x)),
    "attention": (lambda x: dot(x).softmax(-1) @ x.flatten(0, 1), lambda x: C(dot(x)).softmax(-1) @ x.flatten(0, 1)),
    "talking heads": (
        lambda x: (dot(x).softmax(-1) @ MIX + SCALE)[:, :4] @ x[:2].flatten(0, 1),
        lambda x: (C(dot(x)).softmax(-1) @ MIX + SCALE)[:, :4] @ x[:2].flatten(0, 1),
    ),
    "attention without softmax": (
        lambda x: (x @ x.mT) @ x,
        lambda x: ((x @ C(x).mT + C(x) @ x.mT) / 2 @ C(x) + (C(x) @ C(x).mT) @ x) / 2,
    ),
    "two gated inputs": (
        lambda x: x[:, :1] * x[:, 1:],
        lambda x: (x[:, :1] * C(x[:, 1:]) + C(x[:, :1]) * x[:, 1:]) / 2,
    ),
    "sigmoid units": (lambda x: torch.sigmoid(x) @ MIX, lambda x: torch.sigmoid(x) @ MIX),
    "softmax at the end": (lambda x: x.softmax(-1), lambda x: x.softmax(-1)),
    "relu and its like": (
        lambda x: F.leaky_relu(F.relu(x) - F.hardtanh(x)),
        lambda x: F.leaky_relu(F.relu(x) - F.hardtanh(x)),
    ),
}


def inputs() -> Tensor:
    shape = (2, 2, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_equal_those_with_detached_constants(name):
    function, constant = FUNCTIONS[name]
    x = inputs()
    output = function(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert_close(output, constant(x), rtol=0, atol=1e-12)
    found = gradients((output * weights).sum(), x)[0]
    assert_close(found, torch.autograd.grad((constant(x) * weights).sum(), x)[0], rtol=0, atol=1e-12)


def test_a_masked_attention_gives_nothing_to_its_mask():
    x = inputs()
    mask = x.sum() * torch.ones(2, 2, dtype=x.dtype)
    output = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    constant = F.scaled_dot_product_attention(C(x), C(x), x, attn_mask=C(mask))
    assert_close(gradients(output.sum(), x)[0], torch.autograd.grad(constant.sum(), x)[0])


def test_parameters_that_require_gradients_are_constants_all_the_same():
    x, weight = inputs(), MIX.clone().requires_grad_()
    score = ((x @ weight) * torch.sigmoid(weight.sum())).sum()
    with balanced(score, [x]):
        found, own = torch.autograd.grad(score, [x, weight], retain_graph=True)
    exact = torch.autograd.grad(score, [x, weight])
    assert torch.equal(found, exact[0])
    assert torch.equal(own, exact[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_saturated_and_zero_inputs_give_finite_gradients(dtype):
    x = torch.tensor([-50.0, -1e-30, 0.0, 1e-30, 30.0], dtype=dtype, requires_grad=True)
    for function in (F.gelu, F.silu, F.mish, F.elu, F.celu, torch.tanh, lambda x: F.elu(x.clone(), inplace=True)):
        found = gradients(function(x).sum(), x)[0]
        assert found.dtype == dtype
        assert torch.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 1

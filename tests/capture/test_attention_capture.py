"""The attention that is seen in a model, the explicit path of fused kernels, and attention that is not of all."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from attention_cases import IMAGES, NAMES, TARGETS, attention, expected, explain, saliency, same, steps
from evidence import close
from models import Apply, build, images, seeded, tiny
from torch import Tensor, nn
from torch.nn import functional
from traces import unchanged
from transformer_models import KINDS, EncoderModel, plain_vit

from gradcam_kit import METHODS, GradCAM
from gradcam_kit.capture.attention.explicit import ExplicitAttention, explicit_attention
from gradcam_kit.errors import CaptureError
from gradcam_kit.types import Evidence

# What is seen


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_seen_in_the_order_of_the_blocks_and_before_anything_changes_it(kind):
    found = attention(plain_vit(kind))
    assert found.blocks == tuple(f"blocks.{i}.attn" + ".softmax" * (kind == "module") for i in range(3))
    assert (found.grid, found.prefix, found.has_class_token) == ((4, 3), 1, True)
    assert found.gradients is found.block_gradients is found.projections is None
    assert len({float(one.sum(-2)[0, 0, 0]) for one in found.probabilities}) == 3
    for one in found.probabilities:
        assert one.shape == (2, 2, 13, 13)
        assert close(one.sum(-1), torch.ones(2, 2, 13, dtype=torch.float64), 1e-12)


def test_gradients_are_keyed_by_block():
    needs = Evidence.ATTENTION | Evidence.ATTENTION_GRADIENTS
    found = attention(plain_vit("sdpa"), needs=needs)
    for sample, image in enumerate(IMAGES):
        logits, seen, _ = steps(plain_vit(), image)
        gradients = torch.autograd.grad(logits[1], [one["p"] for one in seen])
        for own, other in zip(found.gradients, gradients, strict=True):
            assert same(own[sample], other[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", NAMES[:3])
def test_torchs_encoder_is_kept_off_its_fast_path_for_the_time_of_the_call(name, batch_first):
    model = seeded(EncoderModel(batch_first)).double()
    with unchanged(model, IMAGES):
        found = explain(name, model, targets=TARGETS)
    assert found.saliency["<attention>"].shape == (2, 2, 4, 3)
    with torch.no_grad():
        assert close(found.output, model(IMAGES), 1e-12)  # on the fast path
    other = seeded(EncoderModel(not batch_first)).double()
    assert same(found.saliency["<attention>"], saliency(name, other, targets=TARGETS))
    assert attention(model).blocks == tuple(f"encoder.layers.{i}.self_attn" for i in range(3))


def test_a_block_that_runs_twice_counts_twice():
    shared, apart = plain_vit("sdpa", "shared"), plain_vit("sdpa")
    apart.load_state_dict(shared.state_dict())
    for name in ("attention-rollout", "generic-attention"):
        assert same(saliency(name, shared), saliency(name, apart))
    assert attention(shared).blocks == ("blocks.0.attn", "blocks.1.attn", "blocks.1.attn again")


def test_attention_of_other_threads_and_of_other_things_is_left_out():
    def elsewhere(x: Tensor) -> Tensor:
        q = torch.zeros(2, 1, 13, 4, dtype=torch.float64)
        results: list[Tensor] = []
        thread = threading.Thread(target=lambda: results.append(functional.scaled_dot_product_attention(q, q, q)))
        thread.start()
        thread.join()
        text = torch.zeros(2, 2, 7, 4, dtype=torch.float64)  # seven words fit no grid
        pooled = functional.scaled_dot_product_attention(q[:, :, :1], q, q)
        return x + results[0].sum() + functional.scaled_dot_product_attention(text, text, text).sum() + pooled.sum()

    model = plain_vit("sdpa")
    model.norm = nn.Sequential(Apply(elsewhere), model.norm)
    assert len(attention(model).blocks) == 3
    assert same(saliency("attention-rollout", model, targets=TARGETS), expected("attention-rollout", 1, "token"))


def test_modules_that_another_thread_enters_and_leaves_meanwhile_do_not_matter():
    model, entered, done, errors = plain_vit("sdpa"), threading.Event(), threading.Event(), []
    model.waiter = Apply(lambda x: entered.set() or (done.wait(10) and x))

    def elsewhere() -> None:
        try:
            model.waiter(torch.zeros(2, 13, 8))
        except Exception as error:
            errors.append(error)

    def start(x: Tensor) -> Tensor:
        threads.append(threading.Thread(target=elsewhere))
        threads[-1].start()
        assert entered.wait(10)
        return x

    def stop(x: Tensor) -> Tensor:
        done.set()
        threads[-1].join()
        return x

    threads: list[threading.Thread] = []
    model.patch, model.norm = nn.Sequential(model.patch, Apply(start)), nn.Sequential(Apply(stop), model.norm)
    found = saliency("legrad", model, targets=TARGETS[:, 0])
    assert not errors
    assert same(found, expected("legrad", 1, "token")[:, 0])


# The explicit path


def mask(kind: str) -> Tensor | None:
    allowed = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(4)) < 0.6
    allowed[0, 0, 2] = False  # a query that may attend to nothing
    if kind == "additive":
        return torch.zeros(2, 1, 5, 7).masked_fill(~allowed, -torch.inf) + 0.3 * torch.rand(5, 7)
    return allowed if kind == "boolean" else None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "boolean", "additive", "causal", "scale", "grouped"])
def test_explicit_attention_equals_the_fused_one(kind, dtype):
    q, k, v = (torch.randn(2, 4, t, 8, generator=torch.Generator().manual_seed(t)).to(dtype) for t in (5, 7, 7))
    options: dict[str, Any] = {"is_causal": kind == "causal"}
    if kind == "scale":
        options["scale"] = 2.0
    if kind == "grouped":
        k, v, options = k[:, :2], v[:, :2], {"enable_gqa": True}
    if (allowed := mask(kind)) is not None:
        options = {"attn_mask": allowed if kind == "boolean" else allowed.to(dtype)}
    with torch.random.fork_rng():
        found = explicit_attention(q, k, v, **options)
        fused = functional.scaled_dot_product_attention(q, k, v, **options)
    assert found.dtype == dtype
    assert close(found, fused, {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype])


def test_the_mode_sees_each_step_once_and_ends_with_the_block():
    class Steps:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def see_softmax(self, probabilities: Tensor) -> Tensor:
            self.seen.append("softmax")
            return probabilities

        def see_product(self, left: Tensor, right: Tensor, product: Tensor) -> Tensor:
            self.seen.append("product")
            return product

    one, x = Steps(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    with ExplicitAttention(one):
        functional.scaled_dot_product_attention(x, x, value=x)
        layer(x)
        torch.softmax(x, 1), x.softmax(0), x[0].softmax(-1), x[0] @ x[0].mT
        assert one.seen == ["product", "softmax", "product"] * 2
        torch.baddbmm(x @ x.mT, x, x.mT)
        assert one.seen[6:] == ["product"] * 2
        with pytest.raises(RuntimeError):
            x @ x
    functional.scaled_dot_product_attention(x, x, x)
    assert len(one.seen) == 8


# Errors


def test_models_without_attention_are_an_error_that_says_what_is_needed():
    for name in NAMES:
        model = tiny()
        with unchanged(model), pytest.raises(CaptureError, match="need a transformer"):
            METHODS[name](model)(images(2))


def rows_of(size: int) -> nn.Module:
    """Attention inside each row of pixels."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x).permute(0, 2, 3, 1).flatten(0, 1)
        x = functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return m.fc(x.unflatten(0, (-1, size)).mean((1, 2)))

    return build(run, conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 5))


def merged(strides: tuple[int, ...], keys: int = 1) -> nn.Module:
    """One attention per resolution, whose keys are pooled."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x)
        for stride in strides:
            x = functional.avg_pool2d(x, stride)
            q, k = (functional.avg_pool2d(x, size).flatten(2).mT[:, None] for size in (1, keys))
            x = x + functional.scaled_dot_product_attention(q, k, k)[:, 0].mT.view_as(x)
        return m.fc(x.mean((2, 3)))

    return build(run, conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 5))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (rows_of(8), "'Built' is split into 8 windows of 8 tokens"),
        (merged((1,), keys=2), "in 'Built', 64 tokens attend to 16 merged tokens"),
        (merged((1, 2)), "its blocks have 64 and 16 tokens"),
    ],
)
def test_attention_that_is_not_of_all_tokens_is_an_error_that_says_how(model, message):
    x = images(2, size=(8, 8))
    with unchanged(model, x), pytest.raises(CaptureError, match=message):
        explain("attention-rollout", model, x)
    assert GradCAM(model)(x).shape == (2, 8, 8)


def test_attention_among_channels_is_no_attention_among_tokens():
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.mix(m.conv(x).flatten(2).mT)
        return m.fc(x.mean(1))

    def across(x: Tensor) -> Tensor:
        heads = x.mT[:, None]
        return functional.scaled_dot_product_attention(heads, heads, heads)[:, 0].mT

    model = build(run, conv=nn.Conv2d(3, 16, 1), mix=Apply(across), fc=nn.Linear(16, 5))
    with pytest.raises(CaptureError, match=r"no attention among the tokens .*2x1x16x16"):
        explain("attention-rollout", model, images(2, size=(8, 8)))


def test_methods_that_need_more_of_the_model_say_what():
    with pytest.raises(CaptureError, match="class token of a transformer, and this model has none"):
        explain("grad-eclip", plain_vit(prefix=2, pool="mean"))
    with pytest.raises(CaptureError, match="queries, keys and values of 'Built again' could not be observed"):
        explain("grad-eclip", contracted(), images(2, size=(8, 8)))
    with pytest.raises(CaptureError, match="output tokens of each block of Built could not be scored"):
        explain("legrad", contracted(), images(2, size=(8, 8)))
    assert saliency("generic-attention", contracted(), images(2, size=(8, 8))).any()


def contracted() -> nn.Module:
    """Two attentions in one module, by sums over named axes."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x).flatten(2).mT
        for _ in range(2):
            weights = torch.einsum("nqd,nkd->nqk", x, x).softmax(-1)
            x = x + torch.einsum("nqk,nkd->nqd", weights, x)
        return m.fc(x.mean(1))

    return build(run, conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 5))

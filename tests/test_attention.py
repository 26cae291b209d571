"""Attention of every block, however the model computes it, and the methods that explain it."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import reference as ref
import torch
from evidence import Spy, close, counted
from models import Apply, build, images, seeded, tiny
from torch import Tensor, nn
from torch.nn import functional
from traces import unchanged
from transformer_models import KINDS, EncoderModel, PlainViT, plain_vit

from gradcam_kit import METHODS, GradCAM, explain_all
from gradcam_kit.capture import backward
from gradcam_kit.capture.attention_mode import ExplicitAttention, explicit_attention
from gradcam_kit.errors import CaptureError, OptionError
from gradcam_kit.targets import EmbeddingSimilarity
from gradcam_kit.types import Attention, Evidence, LayerChoice

NAMES = ("attention-rollout", "generic-attention", "legrad", "grad-eclip")
EACH = pytest.mark.parametrize("name", NAMES)
IMAGES = images(2, size=(16, 12)).double()
TARGETS = torch.tensor([[0, 3], [4, 1]])


def explain(name: str, model: nn.Module, x: Tensor = IMAGES, targets: Any = None, **options: Any) -> Any:
    return METHODS[name](model, **options).explain(x, targets)


def saliency(name: str, model: nn.Module, x: Tensor = IMAGES, targets: Any = None, **options: Any) -> Tensor:
    return explain(name, model, x, targets, **options).saliency["<attention>"]


class Watcher(Spy):
    """Keeps the attention that a method sees."""

    layer_choice = LayerChoice.ATTENTION


def attention(model: nn.Module, x: Tensor = IMAGES, needs: Evidence = Evidence.ATTENTION, **options: Any) -> Attention:
    spy = Watcher(model, needs=needs, **options)
    spy.explain(x, 1)
    found = spy.seen["<attention>"].attention
    assert found is not None
    return found


# The transcription of a pass: one sample, plain autograd, nothing of the package


def steps(model: PlainViT, image: Tensor) -> tuple[Tensor, list[dict[str, Tensor]], list[Tensor]]:
    """Logits, what each block's attention computes, and the tokens behind each block."""
    tokens: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _m, _a, out: tokens.append(out)) for block in model.blocks]
    with torch.enable_grad():
        logits = model(image[None])[0]
    for handle in handles:
        handle.remove()
    return logits, [block.attn.seen for block in model.blocks], tokens


def transcribe(name: str, model: PlainViT, image: Tensor, target: int, **options: Any) -> Any:
    logits, seen, tokens = steps(model, image)
    token, prefix = model.pool == "token", model.prefix

    def gradients(score: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        return [found[0] for found in torch.autograd.grad(score, tensors, retain_graph=True)]

    attentions = [one["p"][0].detach() for one in seen]
    if name == "attention-rollout":
        return ref.attention_rollout(attentions, prefix=prefix, class_token=token, **options)
    if name == "generic-attention":
        own = gradients(logits[target], [one["p"] for one in seen])
        return ref.generic_attention(attentions, own, prefix, token)
    if name == "legrad":
        scores = [model.classify(one)[0, target] for one in tokens]
        own = [gradients(score, [one["p"]])[0] for score, one in zip(scores, seen, strict=True)]
        return ref.legrad(own[-options.get("blocks", 3) :], prefix)
    q, k, v = (seen[-1][key][0].transpose(0, 1).flatten(1).detach() for key in "qkv")
    gradient = gradients(logits[target], [seen[-1]["output"]])[0].transpose(0, 1).flatten(1)
    return ref.grad_eclip(gradient[0], v[prefix:], q[0], k[prefix:])


@cache
def expected(name: str, prefix: int, pool: str, options: tuple[tuple[str, Any], ...] = ()) -> Tensor:
    model = plain_vit(prefix=prefix, pool=pool)
    maps = [[transcribe(name, model, x, int(t), **dict(options)) for t in own] for x, own in zip(IMAGES, TARGETS)]
    return torch.stack([torch.stack([torch.as_tensor(one) for one in row]) for row in maps]).unflatten(2, (4, 3))


def same(found: Tensor, other: Tensor, tolerance: float = 1e-10) -> bool:
    return close(found, other, tolerance * float(other.abs().max()))


@pytest.mark.parametrize("kind", KINDS[:-1])
@EACH
def test_methods_equal_the_transcription_however_attention_is_computed(name, kind):
    model = plain_vit(kind)
    found = explain(name, model, targets=TARGETS)
    assert found.layers == ("<attention>",)
    assert same(found.saliency["<attention>"], expected(name, 1, "token"))
    with torch.no_grad():
        assert close(found.output, model(IMAGES), 1e-12)
        assert close(found.scores, model(IMAGES).gather(1, TARGETS), 1e-12)
    assert same(saliency(name, model, targets=TARGETS[:, 1]), expected(name, 1, "token")[:, 1])


@pytest.mark.parametrize(("prefix", "pool"), [(3, "token"), (0, "mean"), (2, "mean")])
@pytest.mark.parametrize("name", NAMES[:3])
def test_registers_and_models_without_class_token(name, prefix, pool):
    model = plain_vit("sdpa", prefix=prefix, pool=pool)
    assert same(saliency(name, model, targets=TARGETS), expected(name, prefix, pool))
    assert attention(model).has_class_token is (pool == "token")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("attention-rollout", {"heads": heads, "discard": share}) for heads in ("max", "min") for share in (0.0, 0.3)),
        ("attention-rollout", {"discard": 0.9}),
        ("legrad", {"blocks": 1}),
        ("legrad", {"blocks": 2}),
    ],
)
def test_options_equal_the_transcription(name, options):
    found = saliency(name, plain_vit("sdpa"), targets=TARGETS, **options)
    assert same(found, expected(name, 1, "token", tuple(options.items())))
    assert not same(found, expected(name, 1, "token"), 1e-3)
    alone = torch.cat([saliency(name, plain_vit("sdpa"), x[None], t[None], **options) for x, t in zip(IMAGES, TARGETS)])
    assert same(found, alone)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention-rollout", {"discard": 1.0}, "discard is 1.0; expected a share"),
        ("attention-rollout", {"discard": -0.1}, "discard is -0.1"),
        ("legrad", {"blocks": 0}, "blocks is 0; expected a positive int"),
        ("legrad", {"blocks": True}, "blocks is True"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(OptionError, match=message):
        METHODS[name](plain_vit(), **options)


def test_grad_eclip_explains_the_similarity_of_embeddings():
    model, reference = plain_vit("mha"), torch.tensor([1.0, -2, 0.5, 0, 3], dtype=torch.float64)
    found = saliency("grad-eclip", model, targets=EmbeddingSimilarity(reference))
    plain = plain_vit()
    for sample, image in enumerate(IMAGES):
        logits, seen, _ = steps(plain, image)
        score = functional.cosine_similarity(logits, reference, dim=0)
        (gradient,) = torch.autograd.grad(score, seen[-1]["output"])
        q, k, v = (seen[-1][key][0].transpose(0, 1).flatten(1).detach() for key in "qkv")
        own = ref.grad_eclip(gradient[0].transpose(0, 1).flatten(1)[0], v[1:], q[0], k[1:])
        assert same(found[sample].flatten(), torch.as_tensor(own))


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


@pytest.mark.parametrize(("option", "kinds"), [("tuples", KINDS[1:2]), ("checkpoint", KINDS[:3])])
@EACH
def test_blocks_of_every_kind(name, option, kinds):
    for kind in kinds:
        assert same(saliency(name, plain_vit(kind, option), targets=TARGETS), expected(name, 1, "token"))


@EACH
def test_blocks_that_change_their_input_in_place(name):
    found = saliency(name, plain_vit("sdpa", "shift in place"), targets=TARGETS)
    assert same(found, saliency(name, plain_vit("sdpa", "shift"), targets=TARGETS))
    assert not same(found, expected(name, 1, "token"), 1e-3)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_hides_the_gradient_but_not_the_attention():
    model = plain_vit("sdpa", "reentrant checkpoint")
    assert same(saliency("attention-rollout", model, targets=TARGETS), expected("attention-rollout", 1, "token"))
    for name in NAMES[1:]:
        with unchanged(model), pytest.raises(CaptureError, match="reentrant checkpoint"):
            explain(name, model)


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


@EACH
def test_frozen_training_and_grad_modes_change_nothing(name):
    model = plain_vit("sdpa").requires_grad_(False)
    model.train()
    with torch.no_grad():
        assert same(saliency(name, model, targets=TARGETS), expected(name, 1, "token"))
    with torch.inference_mode():
        assert same(saliency(name, model, IMAGES.clone(), TARGETS), expected(name, 1, "token"))
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EACH
def test_half_precision_and_autocast(name, dtype):
    half = saliency(name, plain_vit("sdpa").to(dtype), IMAGES.to(dtype), TARGETS)
    with torch.autocast("cpu", dtype):
        cast = explain(name, plain_vit("sdpa").float(), IMAGES.float(), TARGETS)
        output = plain_vit("sdpa").float()(IMAGES.float())
    assert cast.output.dtype == output.dtype
    for found in (half, cast.saliency["<attention>"]):
        assert found.dtype == torch.float32
        assert same(found, expected(name, 1, "token"), 0.1)
        assert not same(found, expected(name, 1, "token"), 1e-6)


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
    with pytest.raises(RuntimeError), ExplicitAttention(one):
        functional.scaled_dot_product_attention(x, x, value=x)
        layer(x)
        torch.softmax(x, 1), x.softmax(0), x[0].softmax(-1), x[0] @ x[0].mT
        assert one.seen == ["product", "softmax", "product"] * 2
        torch.baddbmm(x @ x.mT, x, x.mT)
        assert one.seen[6:] == ["product"] * 2
        x @ x
    functional.scaled_dot_product_attention(x, x, x)
    assert len(one.seen) == 8


# Cost


def test_all_methods_share_one_forward_and_one_backward_pass(monkeypatch):
    model, passes, grad = plain_vit("sdpa"), [], backward._grad
    monkeypatch.setattr(backward, "_grad", lambda *args: passes.append(1) or grad(*args))
    cams = [METHODS[name](model) for name in NAMES if name != "legrad"] + [GradCAM(model, "blocks.1.norm1")]
    alone = [cam(IMAGES, TARGETS[:, 0]) for cam in cams]
    passes.clear()
    with counted(model.blocks[0]) as first:
        together = explain_all(cams, IMAGES, TARGETS[:, 0])
    assert (len(first), len(passes)) == (1, 1)
    assert all(close(found, own) for found, own in zip(together, alone, strict=True))


def test_rollout_needs_no_graph():
    tracked: list[bool] = []
    model = plain_vit("sdpa")
    model.head.register_forward_pre_hook(lambda _, args: tracked.append(args[0].requires_grad))
    explain("attention-rollout", model)
    assert tracked == [False]


@pytest.mark.parametrize("kind", ["sdpa", "explicit"])
def test_legrad_runs_each_block_once(kind):
    model = plain_vit(kind)
    with counted(model.blocks[0].mlp) as first, counted(model.blocks[2].attn) as last, counted(model.head) as heads:
        explain("legrad", model)
    assert (len(first), len(last)) == (1, 1)
    assert len(heads) == 4  # the pass, the check that the head can run alone, and the two blocks before the last


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
        (merged((1,), keys=2), "in 'Built' 64 tokens attend to 16 merged ones"),
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
    with pytest.raises(CaptureError, match="queries, keys and values of 'Built again' could not be seen"):
        explain("grad-eclip", contracted(), images(2, size=(8, 8)))
    with pytest.raises(CaptureError, match="tokens that leave each block of Built could not be scored"):
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


@pytest.mark.parametrize("place", ["norm", "blocks.2.attn.proj", "head"])
@EACH
def test_errors_inside_the_model_leave_no_trace(name, place):
    model = plain_vit("mha")

    def fault(*_: Any) -> None:
        raise ZeroDivisionError(place)

    if place == "blocks.2.attn.proj":
        place = "blocks.2.attn"
    handle = model.get_submodule(place).register_forward_hook(fault)
    with unchanged(model, IMAGES), pytest.raises(ZeroDivisionError):
        explain(name, model)
    handle.remove()
    assert same(saliency(name, model, targets=TARGETS), expected(name, 1, "token"))


def test_target_layers_do_not_matter():
    found = METHODS["legrad"](plain_vit("sdpa"), "blocks.0").explain(IMAGES, TARGETS)
    assert found.layers == ("<attention>",)
    assert same(found.saliency["<attention>"], expected("legrad", 1, "token"))


def test_an_unreadable_output_does_not_stop_the_rollout():
    model = plain_vit("sdpa")
    classify = model.classify
    model.classify = lambda x: (classify(x), classify(x))
    found = explain("attention-rollout", model)
    assert found.scores is None
    assert same(found.saliency["<attention>"], expected("attention-rollout", 1, "token")[:, 0])

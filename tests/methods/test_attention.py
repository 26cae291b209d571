"""The methods that explain attention, however the model computes it, against their transcriptions."""

from __future__ import annotations

import pytest
import reference as ref
import torch
from attention_cases import IMAGES, NAMES, TARGETS, attention, expected, explain, saliency, same, steps
from evidence import close, counted
from torch.nn import functional
from traces import unchanged
from transformer_models import KINDS, plain_vit

from gradcam_kit import METHODS, GradCAM, explain_all
from gradcam_kit.capture.gradients import backward
from gradcam_kit.errors import CaptureError, OptionError
from gradcam_kit.targets import EmbeddingSimilarity

EACH = pytest.mark.parametrize("name", NAMES)


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
        *(
            ("attention-rollout", {"heads": heads, "discard": share})
            for heads in ("max", "min")
            for share in (0.0, 0.3)
        ),
        ("attention-rollout", {"discard": 0.9}),
        ("legrad", {"blocks": 1}),
        ("legrad", {"blocks": 2}),
    ],
)
def test_options_equal_the_transcription(name, options):
    found = saliency(name, plain_vit("sdpa"), targets=TARGETS, **options)
    assert same(found, expected(name, 1, "token", tuple(options.items())))
    assert not same(found, expected(name, 1, "token"), 1e-3)
    halves = [saliency(name, plain_vit("sdpa"), IMAGES[i : i + 1], TARGETS[i : i + 1], **options) for i in range(2)]
    assert same(found, torch.cat(halves))


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
    explain("attention-rollout", model)  # the first call also looks where the tokens come from
    model.head.register_forward_pre_hook(lambda _, args: tracked.append(args[0].requires_grad))
    explain("attention-rollout", model)
    assert tracked == [False]


def test_rollout_next_to_a_gradient_method_starts_no_graph():
    tracked: list[bool] = []
    model = plain_vit("sdpa")
    explain("attention-rollout", model)
    model.blocks[2].register_forward_pre_hook(lambda _, args: tracked.append(args[0].requires_grad))
    explain_all([METHODS["attention-rollout"](model), GradCAM(model, "blocks.2.norm1")], IMAGES)
    assert tracked == [False]
    explain("generic-attention", model)
    assert tracked == [False, True]


@pytest.mark.parametrize("kind", ["sdpa", "explicit"])
def test_legrad_runs_each_block_once(kind):
    model = plain_vit(kind)
    explain("legrad", model)
    with counted(model.blocks[0].mlp) as first, counted(model.blocks[2].attn) as last, counted(model.head) as heads:
        explain("legrad", model)
    assert (len(first), len(last)) == (1, 1)
    assert len(heads) == 4  # the pass, the check that the head can run alone, and the two blocks before the last


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

"""Balanced gradients of whole passes: what is refused, what stays as it was, and layers that share a pass."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from frozen import frozen
from models import build, images
from networks import resnet18, tiny64, vit, vit_mean
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from traces import unchanged
from transformer_models import plain_vit

from gradcam_kit import GradCAM, HiResCAM, explain_all
from gradcam_kit.capture.balance.backward import following, shared_passes
from gradcam_kit.errors import CaptureError
from gradcam_kit.methods import explain_many


def balanced(model, layer, x, targets=1, **options):
    """The signed map of HiResCAM with balanced gradients."""
    found = HiResCAM(model, layer, gradient_rule="balanced", **options).explain(x, targets)
    return next(iter(found.saliency.values()))


def exact(model, layer, x, targets=1):
    return next(iter(HiResCAM(model, layer).explain(x, targets).saliency.values()))


@pytest.mark.parametrize("layer", ["blocks.0.norm1", "blocks.1.norm1", "blocks.0"])
@pytest.mark.parametrize("network", [vit, vit_mean])
def test_transformers_equal_their_frozen_copy(network, layer):
    model, x = network(), images(2, size=(16, 16) if network is vit else (8, 12)).double()
    expected = exact(frozen(model), layer, x)
    assert_close(frozen(model)(x), model(x), rtol=0, atol=1e-12)
    assert_close(balanced(model, layer, x), expected, rtol=0, atol=1e-12)
    if layer != "blocks.1.norm1" or network is vit_mean:
        assert (exact(model, layer, x) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("build_network", [resnet18, tiny64])
def test_networks_of_relus_have_no_hook_and_the_same_bits(build_network):
    model, x = build_network(), images(2, size=(32, 32)).double()
    x.requires_grad_()
    assert shared_passes(model(x)[:, 1], [[x]]) == [([0], {})]
    layer = "layer3" if build_network is resnet18 else "relu1"
    assert torch.equal(balanced(model, layer, x.detach()), exact(model, layer, x.detach()))


def test_exact_gradients_and_outputs_keep_their_bits_beside_balanced_ones():
    model, x = vit(), images(2).double()
    alone = GradCAM(model, "blocks.0").explain(x, 1)
    own = HiResCAM(model, "blocks.0", gradient_rule="balanced").explain(x, 1)
    first, second, third = explain_many(
        [
            GradCAM(model, "blocks.0"),
            HiResCAM(model, "blocks.0", gradient_rule="balanced"),
            HiResCAM(model, "blocks.0"),
        ],
        x,
        1,
    )
    assert torch.equal(first.saliency["blocks.0"], alone.saliency["blocks.0"])
    assert torch.equal(first.output, alone.output)
    assert torch.equal(own.output, alone.output)
    assert torch.equal(second.saliency["blocks.0"], own.saliency["blocks.0"])
    assert torch.equal(third.saliency["blocks.0"], exact(model, "blocks.0", x))


def test_a_batch_equals_its_images_and_frozen_parameters_change_nothing():
    model, x = vit().float(), images(3)
    together = balanced(model, "blocks.0", x)
    assert_close(together, torch.cat([balanced(model, "blocks.0", one[None]) for one in x]))
    model.requires_grad_(False)
    assert torch.equal(balanced(model, "blocks.0", x), together)
    targets = torch.tensor([[1, 3], [0, 2], [4, 1]])
    several = balanced(model, "blocks.0", x, targets)
    assert_close(several[:, 1], balanced(model, "blocks.0", x, targets[:, 1]))


def test_fused_attention_equals_attention_by_hand():
    x = images(2, size=(16, 12)).double()
    by_hand, *others = (
        balanced(plain_vit(kind), "blocks.0", x) for kind in ("explicit", "sdpa", "flat", "mha", "half scaled")
    )
    for own in others:
        assert_close(own, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_half_precision_points_the_same_way(kind):
    model, x = vit().float(), images(2)
    expected = balanced(model, "blocks.0", x)
    if kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = balanced(model, "blocks.0", x)
    else:
        found = balanced(vit().bfloat16(), "blocks.0", x.bfloat16())
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.999


class Doubled(torch.autograd.Function):
    """A function that autograd cannot look into."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


class CompiledFunction(Doubled):
    """As torch calls what it compiled."""


def network(behind, **parts):
    parts = {"layer": nn.Conv2d(3, 4, 3), "next": nn.Conv2d(4, 4, 3), "fc": nn.Linear(4, 5), **parts}
    return build(lambda m, x: m.fc(behind(m, m.layer(x)).mean((2, 3))), **parts)


def gelu(m: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.gelu(m.next(x))


def in_checkpoint(m: nn.Module, x: Tensor, reentrant: bool) -> Tensor:
    return checkpoint(partial(gelu, m), x, use_reentrant=reentrant)


def test_checkpoints_that_keep_the_graph_change_nothing():
    x = images(2).double()
    plain, kept = (network(behind).double() for behind in (gelu, partial(in_checkpoint, reentrant=False)))
    assert torch.equal(balanced(plain, "layer", x), balanced(kept, "layer", x))


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (partial(in_checkpoint, reentrant=True), "CheckpointFunction.*use_reentrant=False"),
        (lambda m, x: Doubled.apply(m.next(x)), "Doubled.*flash-attn"),
        (lambda m, x: CompiledFunction.apply(m.next(x)), "CompiledFunction.*uncompiled"),
    ],
    ids=["reentrant", "custom", "compiled"],
)
def test_what_cannot_be_seen_is_refused(behind, message):
    model, x = network(behind), images(2)
    with unchanged(model, x), pytest.raises(CaptureError, match=message + '.*gradient_rule="exact"'):
        balanced(model, "layer", x)
    assert exact(network(gelu), "layer", x).any()


def test_hidden_operations_in_front_of_the_layer_do_not_matter():
    model = build(
        lambda m, x: m.fc(nn.functional.gelu(m.layer(Doubled.apply(m.first(x)))).mean((2, 3))),
        first=nn.Conv2d(3, 3, 3),
        layer=nn.Conv2d(3, 4, 3),
        fc=nn.Linear(4, 5),
    )
    assert balanced(model, "layer", images(2)).any()


def test_backward_hooks_of_the_users_hide_nothing():
    model, x = network(gelu), images(2)
    expected = balanced(model, "layer", x)
    handle = model.next.register_full_backward_hook(lambda *_: None)
    assert torch.equal(balanced(model, "layer", x), expected)
    handle.remove()


def test_in_place_activations_change_nothing():
    x = images(2).double()
    results = [
        balanced(
            network(lambda m, x, inplace=inplace: nn.functional.silu(m.next(x), inplace=inplace).mul(2)).double(),
            "layer",
            x,
        )
        for inplace in (False, True)
    ]
    assert torch.equal(*results)


def test_hooks_are_gone_after_a_target_that_raises_and_after_the_pass():
    model, x = vit(), images(2).double()
    expected = exact(model, "blocks.0", x)

    def broken(output):
        raise ZeroDivisionError

    with unchanged(model, x), pytest.raises(ZeroDivisionError):
        HiResCAM(model, "blocks.0", gradient_rule="balanced").explain(x, broken)
    x.requires_grad_()
    scores = model(x)[:, 1]
    before = torch.autograd.grad(scores.sum(), x, retain_graph=True)[0]
    [(_, plan)] = shared_passes(scores, [[x]])
    with following(plan):
        assert not torch.equal(torch.autograd.grad(scores.sum(), x, retain_graph=True)[0], before)
    assert torch.equal(torch.autograd.grad(scores.sum(), x)[0], before)
    assert torch.equal(exact(model, "blocks.0", x.detach()), expected)


def test_threads_with_different_rules_do_not_meet():
    model, x = vit().float(), images(2)
    expected = {rule: HiResCAM(model, "blocks.0", gradient_rule=rule)(x, 1) for rule in ("exact", "balanced")}
    found: dict[str, list[Tensor]] = {rule: [] for rule in expected}

    def work(rule):
        for _ in range(4):
            found[rule].append(HiResCAM(model, "blocks.0", gradient_rule=rule)(x, 1))

    threads = [threading.Thread(target=work, args=(rule,)) for rule in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rule, maps in found.items():
        assert len(maps) == 4
        assert all(torch.equal(one, expected[rule]) for one in maps)


def gated(m: nn.Module, x: Tensor) -> Tensor:
    return m.values(x) * torch.sigmoid(m.gates(x))


def test_layers_whose_gates_differ_get_the_same_alone_and_together():
    # For `values` and for `gates` alone the other factor is a constant; for `first` both depend on it.
    model = build(
        lambda m, x: m.fc(gated(m, m.first(x)).mean((2, 3))),
        first=nn.Conv2d(3, 4, 3),
        values=nn.Conv2d(4, 4, 3),
        gates=nn.Conv2d(4, 4, 3),
        fc=nn.Linear(4, 5),
    ).double()
    x = images(2).double()
    layers = ["first", "values", "gates"]
    together = explain_all([HiResCAM(model, layer, gradient_rule="balanced", normalize="none") for layer in layers], x)
    for layer, found in zip(layers, together, strict=True):
        assert torch.equal(found, HiResCAM(model, layer, gradient_rule="balanced", normalize="none")(x))
    assert balanced(model, "gates", x).any()  # of which the gate is no constant, because nothing else depends on it


def test_transformer_blocks_share_one_pass():
    model, x = vit(), images(2).double()
    captured = []
    for block in (model.blocks[0], model.blocks[1]):
        block.register_forward_hook(lambda module, args, output: captured.append(output))
    passes = shared_passes(model(x.requires_grad_())[:, 1], [[one] for one in captured])
    assert [places for places, _ in passes] == [[0, 1]]
    kinds = {action.kind for _, plan in passes for action in plan.values()}
    assert kinds == {"own", "without"}  # normalizations and GELU, and fused attention

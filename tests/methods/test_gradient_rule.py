"""The option `gradient_rule` of every method: who takes it, who shares a pass, and what is told of it."""

from __future__ import annotations

import pytest
import torch
from evidence import Spy, evidence
from frozen import FROZEN, frozen
from models import images, tiny
from networks import mobilenet, vit
from representatives import representatives
from torch import nn
from torch.testing import assert_close

from gradcam_kit import METHODS, EigenCAM, EigenSmooth, FullGrad, GradCAM, LayerCAM, Smooth, explain_all
from gradcam_kit.errors import InputError, UnknownNameError
from gradcam_kit.methods import explain_many
from gradcam_kit.targets import EmbeddingSimilarity
from gradcam_kit.types import Evidence

REFUSED = Evidence.CURVATURE | Evidence.WEIGHT_GRADIENTS | Evidence.GUIDED
TAKING = [name for name, kind in METHODS.items() if kind.needs & Evidence.RULED and not kind.needs & REFUSED]
LAYER = "blocks.0"


@pytest.fixture(scope="module")
def model():
    return vit()


X = images(2).double()


def test_the_methods_that_take_the_rule():
    assert {"grad-cam", "full-grad", "generic-attention", "legrad", "grad-eclip", "smooth-grad-cam++"} <= set(TAKING)
    assert not {"eigen-cam", "score-cam", "shapley-cam", "einsum-cam", "guided-grad-cam"} & set(TAKING)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(TAKING)))
def test_methods_without_such_gradients_refuse_it(name):
    reason = "uses no gradients|second derivatives|with respect to its own weights|its own rule for gradients"
    with pytest.raises(InputError, match=f"{METHODS[name].__name__} .*({reason})"):
        METHODS[name](tiny(), "relu2", gradient_rule="balanced")


def test_unknown_rules_are_errors():
    with pytest.raises(
        UnknownNameError, match=r"gradient_rule is 'balance'; expected 'exact', 'balanced'.*mean 'balan"
    ):
        GradCAM(tiny(), gradient_rule="balance")


def test_the_rule_is_told(model):
    cam = GradCAM(model, LAYER, gradient_rule="balanced")
    assert "gradient_rule='balanced'" in repr(cam)
    assert "gradient_rule" not in repr(GradCAM(model, LAYER))
    found, plain = cam.explain(X), GradCAM(model, LAYER).explain(X)
    assert (found.gradient_rule, plain.gradient_rule) == ("balanced", "exact")
    assert EigenCAM(model, LAYER).explain(X).gradient_rule == "exact"
    assert "gradient_rule='balanced'" in repr(found)
    assert "gradient_rule" not in repr(plain)
    assert "balanced gradients" in found._repr_html_()
    assert cam.explain(X[:0]).gradient_rule == "balanced"


def of_layer(name):
    return {} if METHODS[name].layer_choice.is_fixed else {"target_layers": "blocks.1.norm1"}


FEW = {"smooth-grad-cam++": {"samples": 2}, "expected-grad-cam": {"samples": 2}, "integrated-grad-cam": {"steps": 3}}
# The frozen network hides its biases in other modules.
ON_TRANSFORMERS = [name for name in representatives(TAKING) if name not in ("sess", "full-grad")]


@pytest.mark.parametrize("name", [*ON_TRANSFORMERS, "layer-cam", "grad-cam++", "integrated-grad-cam"])
def test_methods_equal_themselves_on_the_frozen_network(model, name):
    """All but those that look for the attention, which the frozen network computes in another module."""
    options = {**of_layer(name), **FEW.get(name, {})}
    if METHODS[name].needs & Evidence.ATTENTION:
        pytest.skip("compared below")
    found = METHODS[name](model, gradient_rule="balanced", **options).explain(X, 1)
    expected = METHODS[name](frozen(model), **options).explain(X, 1)
    for layer, maps in expected.saliency.items():
        assert_close(found.saliency[layer], maps, rtol=0, atol=1e-11)


def attentions(model: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Every attention as a leaf, with all else written out and constant, and the logits."""
    leaves, tokens = [], model.tokens(x)
    for block in model.blocks:
        normed, own = FROZEN[nn.LayerNorm](block.norm1, tokens), block.attn
        projected = nn.functional.linear(normed, own.in_proj_weight, own.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)
        leaves.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).detach().requires_grad_())
        tokens = tokens + own.out_proj((leaves[-1] @ v).transpose(1, 2).flatten(2))
        hidden = block.mlp[0](FROZEN[nn.LayerNorm](block.norm2, tokens))
        tokens = tokens + block.mlp[2](FROZEN[nn.GELU](block.mlp[1], hidden))
    return leaves, model.head(FROZEN[nn.LayerNorm](model.norm, tokens)[:, 0])


def test_gradients_of_the_attention_are_balanced_too(model):
    class Looking(Spy):
        needs = Evidence.ATTENTION | Evidence.ATTENTION_GRADIENTS
        layer_choice = METHODS["generic-attention"].layer_choice

    cams = [Looking(model, gradient_rule=rule, needs=Looking.needs) for rule in ("exact", "balanced")]
    explain_many(cams, X, 1)
    leaves, logits = attentions(model, X)
    assert_close(logits, model(X), rtol=0, atol=1e-12)
    expected = torch.autograd.grad(logits[:, 1].sum(), leaves)
    exact, found = (next(iter(cam.seen.values())).attention.gradients for cam in cams)
    for own, wanted, other in zip(found, expected, exact, strict=True):
        assert_close(own, wanted, rtol=0, atol=1e-12)
        assert not torch.allclose(own, other, rtol=1e-3)


def test_methods_with_different_rules_share_a_pass_and_equal_themselves(model):
    makers = [
        lambda rule, kind=kind, **own: kind(model, gradient_rule=rule, **own)
        for kind in (METHODS["generic-attention"], METHODS["legrad"], METHODS["grad-eclip"], FullGrad)
    ] + [lambda rule: GradCAM(model, "blocks.1.norm1", gradient_rule=rule)]
    cams = [make(rule) for make in makers for rule in ("exact", "balanced")]
    cams += [
        METHODS["attention-rollout"](model),
        EigenCAM(model, LAYER),
        LayerCAM(model, LAYER, gradient_rule="balanced"),
    ]
    for cam, heatmaps in zip(cams, explain_all(cams, X, 1), strict=True):
        assert torch.equal(heatmaps, cam(X, 1)), cam
    different = 0
    for exact, balanced in zip(cams[:10:2], cams[1:10:2], strict=True):
        different += not torch.allclose(exact(X, 1), balanced(X, 1), atol=1e-3)
    assert different >= 4


def test_terms_of_full_grad_add_up_but_for_positions_and_class_token(model):
    seen = {}

    class Terms(FullGrad):
        def saliency(self, layer):
            seen.update(layer=layer)
            return super().saliency(layer)

    x = X[:1]
    score = Terms(model, gradient_rule="balanced").explain(x, 1).scores
    layer = seen["layer"]
    total = (layer.activations * layer.gradients).sum() + sum(term.sum() for term in layer.bias_gradients)
    plain = frozen(model)
    parts = [plain.position, plain.cls_token]
    gradients = torch.autograd.grad(plain(x)[0, 1], parts)
    added = sum((part * gradient).sum() for part, gradient in zip(parts, gradients, strict=True))
    # The biases of torch's attention are none of a module that runs.
    inner = [block.attn.module.in_proj_bias for block in plain.blocks]
    inner += [block.attn.module.out_proj.bias for block in plain.blocks]  # it does not run as a module
    added += sum((own * g).sum() for own, g in zip(inner, torch.autograd.grad(plain(x)[0, 1], inner), strict=True))
    assert_close(total + added, score[0], rtol=0, atol=1e-10)


def test_gates_of_squeeze_and_excitation_are_constant():
    model, x = mobilenet(), images(1, size=(32, 32)).double()
    found = GradCAM(model, "features.3", gradient_rule="balanced").explain(x, 1).saliency["features.3"]
    assert_close(found, GradCAM(frozen(model), "features.3").explain(x, 1).saliency["features.3"], rtol=0, atol=1e-11)
    exact = GradCAM(model, "features.3").explain(x, 1).saliency["features.3"]
    assert (found - exact).abs().max() > 0.1 * exact.abs().max()


def test_targets_are_exact_but_for_the_norms_of_similarities(model):
    plain = frozen(model)

    def product(logits):
        return logits[:, 1] * logits[:, 2].sigmoid() / logits[:, 3].exp()

    def cosine(logits):
        norm = (logits.detach() if logits.grad_fn is not None and of_frozen else logits).norm(dim=1)
        return logits[:, 1] / norm

    for target, of_frozen in ((product, False), (cosine, True)):
        expected = LayerCAM(plain, LAYER).explain(X, target).saliency[LAYER]
        of_frozen = False
        found = LayerCAM(model, LAYER, gradient_rule="balanced").explain(X, target).saliency[LAYER]
        assert_close(found, expected, rtol=0, atol=1e-11)
    similarity = EmbeddingSimilarity(torch.ones(5, dtype=torch.float64))
    layer = evidence(model, LAYER, X, similarity, gradient_rule="balanced")
    size = model(X).norm(dim=1).detach()
    expected = LayerCAM(plain, LAYER).explain(X, lambda logits: logits.sum(1) / size / 5**0.5).saliency[LAYER]
    assert_close((layer.gradients.clamp(min=0) * layer.activations).sum(1), expected, rtol=0, atol=1e-11)


def test_wrappers_hand_the_rule_on(model):
    cam = LayerCAM(model, LAYER, gradient_rule="balanced")
    plain = LayerCAM(frozen(model), LAYER)
    for wrap in (EigenSmooth, lambda cam: Smooth(cam, samples=2)):
        found, expected = wrap(cam).explain(X, 1), wrap(plain).explain(X, 1)
        assert_close(found.saliency[LAYER], expected.saliency[LAYER], rtol=0, atol=1e-10)
        assert found.gradient_rule == "balanced"


def test_the_sanity_check_takes_the_rule(model):
    assert not GradCAM(model, LAYER, gradient_rule="balanced").check(X, 1).is_unreached.any()

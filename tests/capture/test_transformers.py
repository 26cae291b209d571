"""Transformers of torchvision, timm, Hugging Face and open_clip: layers, grids and attention, without any option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pytest
import reference as ref
import torch
from evidence import close
from models import images
from torch import Tensor, nn
from traces import unchanged
from transformer_models import (
    hugging_face,
    hugging_face_clip,
    timm_model,
    timm_swin,
    timm_vit,
    torchvision_swin,
    torchvision_vit,
)

from gradcam_kit import METHODS, AttentionRollout, GradCAM
from gradcam_kit.errors import CaptureError
from gradcam_kit.targets import EmbeddingSimilarity
from gradcam_kit.targets.outputs import find_logits
from gradcam_kit.types import Attention

WINDOWS, MERGED = r"is split into \d+ windows", r"\d+ tokens attend to \d+ merged tokens"
NONE, SCALES = "has no attention among the tokens", r"its blocks have \d+ and \d+ tokens"


@dataclass
class Case:
    """A model, and what must be found in it.

    Args:
        layer: the end of the name of the layer that is chosen.
        grid: of that layer.
        norm: a layer that is asked for; its output has `prefix` tokens before those of `grid`.
        prefix: None for maps, first or last channels.
        partial: why attention methods do not suit; empty where they do.
    """

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    layer: str
    grid: tuple[int, int]
    norm: str = ""
    prefix: int | None = None
    partial: str = ""
    class_token: bool = True

    @cached_property
    def model(self) -> nn.Module:
        return self.build()

    @cached_property
    def images(self) -> Tensor:
        return images(2, size=self.size)


def vit(*args: Any, **options: Any) -> Callable[[], nn.Module]:
    return partial(timm_vit, *args, **options)


def hf(*args: Any, **options: Any) -> Callable[[], nn.Module]:
    return partial(hugging_face, *args, **options)


def timm(*args: Any, **options: Any) -> Callable[[], nn.Module]:
    return partial(timm_model, *args, **options)


SQUARE, LAST, XCIT = (64, 64), "blocks.2.norm1", "blocks.1.norm1"
FIRST = "encoder.layers.encoder_layer_0.ln_1"
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
SEGFORMER |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
MEAN = {"reg_tokens": 2, "global_pool": "avg", "class_token": False}
DINO = {"size": (56, 84), "patch_size": 14, "reg_tokens": 4}
CLASSLESS = {"class_token": False}
CASES = [
    Case("torchvision ViT", torchvision_vit, (32, 32), "layer_2.ln_1", (4, 4), FIRST, 1),
    Case("torchvision Swin", torchvision_swin, SQUARE, "permute", (16, 16), "norm", partial=WINDOWS),
    Case("torchvision Swin wide", torchvision_swin, (64, 96), "permute", (16, 24), "norm", partial=WINDOWS),
    Case("ViT", vit(), SQUARE, LAST, (4, 4), "blocks.1.norm1", 1),
    Case("ViT wide", vit(size=(64, 96)), (64, 96), LAST, (4, 6), "blocks.1.norm1", 1),
    Case("ViT of any size", vit(dynamic_img_size=True), (80, 64), LAST, (5, 4), "blocks.1.norm1", 1),
    Case("ViT mean", vit(global_pool="avg"), SQUARE, "blocks", (4, 4), "blocks.2.norm2", 1),
    Case("ViT attention pool", vit(global_pool="map", **CLASSLESS), SQUARE, "norm", (4, 4), "norm", 0, **CLASSLESS),
    Case("ViT registers alone", vit(**MEAN), SQUARE, "blocks", (4, 4), LAST, 2, **CLASSLESS),
    Case("DINOv2 registers", vit(**DINO), (56, 84), LAST, (4, 6), "blocks.0.norm2", 5),
    Case("DeiT distilled", vit("deit_tiny_distilled_patch16_224"), SQUARE, LAST, (4, 4), "blocks.1.norm1", 2),
    Case("BEiT", vit("beit_base_patch16_224"), SQUARE, "norm", (4, 4), LAST, 1),
    Case("EVA-02", vit("eva02_tiny_patch14_224", size=56), (56, 56), "norm", (4, 4), LAST, 1),
    Case("CaiT", vit("cait_xxs24_224", init_values=1.0), SQUARE, "only.1.norm1", (4, 4), LAST, 0, **CLASSLESS),
    Case("Swin", timm_swin, SQUARE, "norm", (8, 8), "layers.1.blocks.1.norm1", partial=WINDOWS),
    Case("Swin wide", partial(timm_swin, size=(64, 96)), (64, 96), "norm", (8, 12), "norm", partial=WINDOWS),
    Case("Swin V2", partial(timm_swin, "swinv2_tiny_window8_256"), SQUARE, "norm", (8, 8), "norm", partial=WINDOWS),
    Case("MaxViT", timm("maxvit_pico_rw_256", img_size=64), SQUARE, "norm", (2, 2), "stages.2", partial=WINDOWS),
    Case("CoAtNet", timm("coatnet_pico_rw_224", img_size=64), SQUARE, "norm", (2, 2), "stages.2", partial=SCALES),
    Case("PVT", timm("pvt_v2_b0"), (64, 96), "stages", (2, 3), "stages.2", partial=MERGED),
    Case("MobileViT", timm("mobilevit_xxs"), SQUARE, "final_conv", (2, 2), "stages.3", partial=WINDOWS),
    Case("XCiT", timm("xcit_nano_12_p16_224", img_size=64, depth=2), SQUARE, "1.norm1", (4, 4), XCIT, 0, NONE),
    Case("HF ViT", hf("ViT"), (32, 32), "2.layernorm_before", (4, 4)),
    Case("HF ViT eager", hf("ViT", "eager"), (32, 32), "2.layernorm_before", (4, 4)),
    Case("HF DeiT", hf("DeiT"), (32, 32), "2.layernorm_before", (4, 4)),
    Case("HF BEiT", hf("Beit"), (32, 32), "beit.layernorm", (4, 4), "beit.layernorm", 1),
    Case("HF DINOv2", hf("Dinov2"), (32, 48), "dinov2", (4, 6), "dinov2.layernorm", 1),
    Case("HF DINOv2 registers", hf("Dinov2WithRegisters"), (48, 32), "registers", (6, 4)),
    Case("HF Swin", hf("Swin"), SQUARE, "swin.layernorm", (8, 8), "swin.layernorm", 0, WINDOWS),
    Case("HF ConvNeXt", hf("ConvNext", **CONVNEXT), SQUARE, "encoder", (8, 8), "convnext.encoder", partial=NONE),
    Case("HF SegFormer", hf("Segformer", **SEGFORMER), SQUARE, "segformer", (8, 8), "segformer", partial=MERGED),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
PLAIN = pytest.mark.parametrize("case", [case for case in CASES if not case.partial], ids=lambda case: case.name)


def logits_of(case: Case) -> Tensor:
    with torch.no_grad():
        return find_logits(case.model(case.images))


def plain_grad_cam(case: Case, name: str) -> Tensor:
    """Grad-CAM of a layer by a plain hook, with its output laid out by hand."""
    kept: list[Any] = []
    handle = case.model.get_submodule(name).register_forward_hook(lambda _m, _a, output: kept.append(output))
    logits = find_logits(case.model(case.images))
    handle.remove()
    output = kept[0] if isinstance(kept[0], Tensor) else kept[0][0]
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), output)
    if case.prefix is not None:
        maps = [one[:, case.prefix :].mT.unflatten(2, case.grid) for one in (output, gradient)]
    elif tuple(output.shape[1:3]) == case.grid:
        maps = [one.permute(0, 3, 1, 2) for one in (output, gradient)]
    else:
        maps = [output, gradient]
    return torch.stack([torch.as_tensor(ref.grad_cam(*pair)) for pair in zip(*(m.detach() for m in maps), strict=True)])


@EACH
def test_the_automatic_layer(case):
    with unchanged(case.model, case.images):
        found = GradCAM(case.model).explain(case.images)
    (layer,) = found.layers
    assert layer.endswith(case.layer)
    assert found.saliency[layer].shape == (2, *case.grid)
    assert found.heatmaps.shape == (2, *case.size)
    assert torch.equal(found.heatmaps.amax((1, 2)), (~found.is_empty).float())
    assert found.saliency[layer].any()
    assert close(find_logits(found.output), logits_of(case), 1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.norm], ids=lambda case: case.name)
def test_a_layer_that_is_asked_for(case):
    expected = plain_grad_cam(case, case.norm)
    found = GradCAM(case.model, case.norm).explain(case.images).saliency[case.norm]
    assert close(found, expected, 1e-4 * float(expected.abs().max()))


@PLAIN
@pytest.mark.parametrize("name", ["attention-rollout", "generic-attention", "legrad"])
def test_attention_methods(case, name):
    targets = torch.tensor([[0, 5], [3, 6]])
    with unchanged(case.model, case.images):
        found = METHODS[name](case.model).explain(case.images, targets)
    saliency = found.saliency["<attention>"]
    assert saliency.shape == (2, 2, *case.grid)
    assert saliency.amin() >= 0
    assert (saliency.flatten(2).amax(2) > saliency.flatten(2).amin(2)).all()
    assert torch.equal(saliency[:, 0], saliency[:, 1]) is (name == "attention-rollout")
    assert close(find_logits(found.output), logits_of(case), 1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.partial], ids=lambda case: case.name)
def test_other_attention_is_an_error_that_says_how(case):
    with unchanged(case.model, case.images), pytest.raises(CaptureError, match=case.partial):
        METHODS["generic-attention"](case.model)(case.images)


class Watcher(AttentionRollout):
    """Keeps the attention that it sees."""

    def saliencies(self, layer: Any) -> Tensor:
        self.seen: Attention = layer.attention
        return super().saliencies(layer)


def watched(model: nn.Module, x: Tensor) -> Attention:
    cam = Watcher(model)
    cam(x)
    return cam.seen


@PLAIN
def test_tokens_are_those_of_the_model(case):
    seen = watched(case.model, case.images)
    assert len(seen.blocks) == len(set(seen.blocks)) == 3
    assert seen.grid == case.grid
    assert seen.has_class_token is case.class_token
    if case.norm:
        assert seen.prefix == case.prefix


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2WithRegisters"])
def test_attention_equals_what_the_model_says_itself(kind):
    fused, eager, x = hugging_face(kind), hugging_face(kind, "eager"), images(2, size=(32, 32))
    with torch.no_grad():
        expected = eager(x, output_attentions=True).attentions
    for own, other in zip(watched(fused, x).probabilities, expected, strict=True):
        assert close(own, other)
    prefix = watched(fused, x).prefix
    rollouts = [ref.attention_rollout([block[i] for block in expected], prefix=prefix) for i in range(2)]
    found = AttentionRollout(fused).explain(x).saliency["<attention>"].flatten(1)
    assert close(found, torch.stack([torch.as_tensor(one) for one in rollouts]))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_fused_and_plain_attention_of_timm_are_the_same(name):
    fused, plain, x = timm_vit(name, 56, patch_size=14), timm_vit(name, 56, patch_size=14), images(2, size=(56, 56))
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for method in ("attention-rollout", "generic-attention", "legrad"):
        maps = [METHODS[method](model).explain(x, 3).saliency["<attention>"] for model in (fused, plain)]
        assert close(maps[0], maps[1], 1e-5 * float(maps[1].amax()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("texts", [1, 2, 3])
def test_clip_is_explained_next_to_its_texts(attention, texts):
    model, x = hugging_face_clip(attention), images(2, size=(32, 32))
    words = torch.randint(3, 50, (texts, 10), generator=torch.Generator().manual_seed(0))  # 10 = 1 + 3x3
    inputs = {"pixel_values": x, "input_ids": words}
    with torch.no_grad():
        reference = model(**inputs).text_embeds[0]
    assert GradCAM(model).explain(inputs, EmbeddingSimilarity(reference)).layers[0].endswith("layers.2.layer_norm1")
    for name in ("attention-rollout", "generic-attention", "legrad", "grad-eclip"):
        with unchanged(model, x, words):
            found = METHODS[name](model).explain(inputs, EmbeddingSimilarity(reference))
        assert found.saliency["<attention>"].shape == (2, 4, 4)
        assert not found.is_empty.any()
        alone = METHODS[name](model).explain({**inputs, "pixel_values": x[1:]}, EmbeddingSimilarity(reference))
        expected = alone.saliency["<attention>"]
        assert close(found.saliency["<attention>"][1:], expected, 1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_tiny_patch16_224"])
def test_a_class_token_that_the_score_does_not_see_is_an_error(name):
    model = timm_vit(name, global_pool="avg")
    with pytest.raises(CaptureError, match=r"no gradient reaches the class token in 'blocks\.2\.attn'"):
        METHODS["grad-eclip"](model)(images(2, size=SQUARE))


def test_checkpointed_blocks():
    model, x = timm_vit(), images(2, size=SQUARE)
    expected = [METHODS[name](model)(x, 2) for name in ("attention-rollout", "generic-attention", "legrad")]
    model.set_grad_checkpointing(True)
    with unchanged(model, x):
        found = [METHODS[name](model)(x, 2) for name in ("attention-rollout", "generic-attention", "legrad")]
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))


def test_open_clip():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(8, vision, text).eval()
    x, reference = images(2, size=(32, 32)), torch.linspace(-1, 1, 8)
    target = EmbeddingSimilarity(reference)
    assert "resblocks.2.ln_1" in GradCAM(model.visual).explain(x, target).layers[0]
    for name in ("attention-rollout", "generic-attention", "legrad", "grad-eclip"):
        with unchanged(model, x):
            found = METHODS[name](model.visual).explain(x, target)
        assert found.saliency["<attention>"].shape == (2, 4, 4)
        with torch.no_grad():
            assert close(found.output, model.visual(x))

"""Completeness: balanced gradients account for the whole score, in every kind of architecture, at input and blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from additive import score_and_shares, settled
from models import images
from torch import nn

Row = tuple[Callable[[], nn.Module], int, tuple[str, ...], tuple[str, ...]]
"""How a model is made, the side of its images, layers that the graph begins at, and modules that make positions."""


def timm(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=5, **options)


def small(name: str = "vit_tiny_patch16_224", size: int = 32, **options: Any) -> nn.Module:
    return timm(name, **{"img_size": size, "embed_dim": 24, "depth": 2, "num_heads": 2, **options})


def vision(name: str, **options: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=5, **options)


def hugging_face(kind: str, head: str = "ForImageClassification", **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    attention = options.pop("attention", None)
    options["num_labels"] = 5
    if kind != "Swin":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        options = {"image_size": 32, "patch_size": 8, **sizes, **options}
    if not kind.startswith(("Dinov2", "Swin")):
        options["intermediate_size"] = 24
    config = kind.removesuffix("Vision") + ("VisionConfig" if kind.endswith("Vision") else "Config")
    extra = {"attn_implementation": attention} if attention else {}
    return getattr(transformers, kind + head)(getattr(transformers, config)(**options, **extra))


def open_clip(quick_gelu: bool) -> nn.Module:
    library = pytest.importorskip("open_clip")
    vision = library.model.CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=32)
    text = library.model.CLIPTextCfg(width=16, heads=2, layers=1, vocab_size=9)
    return library.CLIP(8, vision, text, quick_gelu=quick_gelu).visual


BLOCKS = ("blocks.0", "blocks.1")
STAGES: dict[str, Any] = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
MODELS: dict[str, Row] = {
    "vit": (small, 32, BLOCKS, ()),
    "vit mean": (partial(small, global_pool="avg", class_token=False, fc_norm=True), 32, BLOCKS, ()),
    "vit map": (partial(small, global_pool="map", class_token=False), 32, BLOCKS, ()),
    "vit registers": (partial(small, reg_tokens=4), 32, BLOCKS, ()),
    "vit layer scale": (partial(small, init_values=0.1, qk_norm=True), 32, BLOCKS, ()),
    "deit": (partial(small, "deit_tiny_distilled_patch16_224"), 32, BLOCKS, ()),
    "beit": (partial(small, "beit_base_patch16_224"), 32, BLOCKS, ()),
    "eva02": (partial(small, "eva02_tiny_patch14_224", 28), 28, BLOCKS, ()),
    "cait": (partial(small, "cait_xxs24_224"), 32, BLOCKS, ()),
    "xcit": (partial(timm, "xcit_nano_12_p16_224", depth=2), 64, BLOCKS, ("pos_embed",)),
    "swin": (
        partial(timm, "swin_tiny_patch4_window7_224", img_size=32, window_size=4, **STAGES),
        32,
        ("layers.0",),
        (),
    ),
    "swin v2": (
        partial(timm, "swinv2_tiny_window8_256", img_size=32, window_size=4, **STAGES),
        32,
        ("layers.0.blocks.0", "layers.0"),
        (),
    ),
    "maxvit": (partial(timm, "maxvit_pico_rw_256", img_size=64), 64, ("stages.2.blocks.0",), ()),
    "coat": (partial(timm, "coat_lite_tiny", img_size=32), 32, (), ()),
    "pvt": (partial(timm, "pvt_v2_b0"), 64, ("stages.0.blocks.0",), ()),
    "mixer": (partial(timm, "mixer_s32_224", img_size=64), 64, BLOCKS, ()),
    "convnext": (partial(timm, "convnext_atto"), 32, ("stages.0.blocks.0", "stages.2.blocks.1"), ()),
    "convnext v2": (partial(timm, "convnextv2_atto"), 32, ("stages.0.blocks.0", "stages.2.blocks.1"), ()),
    "efficientnet": (partial(timm, "efficientnet_b0"), 32, ("blocks.1", "blocks.4"), ()),
    "efficientnet of torchvision": (partial(vision, "efficientnet_b0"), 32, ("features.2",), ()),
    "mobilenet v3": (partial(vision, "mobilenet_v3_small"), 32, ("features.3",), ()),
    "swin of torchvision": (partial(vision, "swin_t"), 32, ("features.1.0", "features.1.1"), ()),
    "swin v2 of torchvision": (partial(vision, "swin_v2_t"), 32, ("features.1.0",), ()),
    "hf vit": (partial(hugging_face, "ViT", attention="sdpa"), 32, (), ()),
    "hf vit eager": (partial(hugging_face, "ViT", attention="eager"), 32, (), ()),
    "hf dinov2": (partial(hugging_face, "Dinov2", use_swiglu_ffn=True), 32, (), ()),
    "hf dinov2 registers": (partial(hugging_face, "Dinov2WithRegisters"), 32, (), ()),
    "hf beit": (partial(hugging_face, "Beit"), 32, (), ()),
    "hf swin": (partial(hugging_face, "Swin", image_size=32, patch_size=2, window_size=4, **STAGES), 32, (), ()),
    "hf clip": (partial(hugging_face, "CLIPVision", "Model"), 32, (), ()),
    "hf siglip": (partial(hugging_face, "SiglipVision", "Model"), 32, (), ()),
    "open_clip": (partial(open_clip, False), 32, (), ()),
    "open_clip quick gelu": (partial(open_clip, True), 32, (), ()),
}


@pytest.mark.parametrize("name", MODELS)
def test_shares_add_up_to_the_score(name):
    make, side, layers, made = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settled(make())
    for layer in ("", *layers):
        score, total = score_and_shares(model, images(2, size=(side, side)).double(), layer, made)
        assert abs(score) > 1e-3
        assert abs(total - score) <= 1e-9 * abs(score), layer

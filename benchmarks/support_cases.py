"""The architectures of the support matrix: how to build each without weights, at which sizes, and what to explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from gradcam_kit.targets import DetectionTarget, EmbeddingSimilarity, SegmentationTarget

LIBRARIES = ("torchvision", "timm", "transformers", "open_clip")
_SIDE = 96
_PER_FILE = 4
# Parts of the names of small architectures, smallest architectures first.
_SMALLEST = ("atto", "femto", "pico", "nano", "xxs", "xxt", "tiny", "xs", "s0", "b0", "_s", "small", "18", "26", "50")
_MORE_TIMM = (
    "convnext_tiny",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "efficientnet_es",
    "eva02_small_patch14_224",
    "inception_v4",
    "maxvit_tiny_rw_224",
    "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium",
    "regnety_002",
    "resnet50_clip",
    "resnetv2_50x1_bit",
    "swinv2_tiny_window16_256",
    "vit_base_patch32_clip_224",
    "vit_base_r50_s16_224",
    "vit_betwixt_patch16_reg4_gap_256",
    "vit_medium_patch16_gap_240",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_36x1_224",
    "vit_small_patch16_dinov3",
    "vit_base_patch32_siglip_gap_256",
    "vit_so150m_patch16_reg4_map_256",
    "vit_wee_patch16_reg1_gap_256",
)
"""Well-known architectures in addition to those that `timm_cases` chooses from each source file."""
_OPEN_CLIP = (
    "RN50",
    "ViT-B-16",
    "ViT-B-32",
    "ViT-B-16-plus-240",
    "ViT-B-16-SigLIP",
    "ViT-S-16",
    "EVA02-B-16",
    "MobileCLIP-S1",
    "MobileCLIP2-S0",
    "PE-Core-T-16-384",
    "ViTamin-S",
    "coca_ViT-B-32",
    "convnext_tiny",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
)


@dataclass(frozen=True)
class Case:
    """An architecture of the support matrix.

    Attributes:
        name: library and architecture, such as "torchvision:resnet18".
        family: task of the architecture; for timm, the source file.
        build: function that builds the model without pretrained weights.
        sizes: sizes of the images; the next one is tried if the explanation at the previous one does not succeed.
        targets: what is explained; None = the predicted class.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    sizes: tuple[tuple[int, ...], ...]
    targets: Any = None


def cases(library: str) -> dict[str, Case]:
    """Return all cases of a library by name."""
    makers = {
        "torchvision": torchvision_cases,
        "timm": timm_cases,
        "transformers": transformers_cases,
        "open_clip": open_clip_cases,
    }
    return {case.name: case for case in makers[library]()}


def torchvision_cases() -> Iterator[Case]:
    """Yield all classification, segmentation, detection and video architectures of torchvision."""
    models = torchvision.models
    small = ((_SIDE, _SIDE),)
    region = SegmentationTarget(torch.ones(_SIDE, _SIDE), 1)
    box = DetectionTarget([8.0, 8.0, 88.0, 88.0], iou=1e-6, required=False)
    for name in models.list_models(module=models):
        side = 224 if name.startswith(("vit", "maxvit", "inception")) else _SIDE
        yield Case(f"torchvision:{name}", "classification", _torchvision(name), ((side, side),))
    for name in models.list_models(module=models.segmentation):
        yield Case(f"torchvision:{name}", "segmentation", _torchvision(name, weights_backbone=None), small, region)
    for name in models.list_models(module=models.detection):
        options = {"box_score_thresh" if "rcnn" in name else "score_thresh": 0.0, "weights_backbone": None}
        if not name.startswith("ssd"):  # by default, most other detectors enlarge images to 800 pixels
            options |= {"min_size": 192, "max_size": 256}
        build = _torchvision(name, **options)
        yield Case(f"torchvision:{name}", "detection", build, small, box)
    for name in models.list_models(module=models.video):
        size = (16, 224, 224) if name.startswith(("mvit", "s3d")) else (8, 64, 64)
        yield Case(f"torchvision:{name}", "video", _torchvision(name), (size,))


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return model

    return build


def timm_cases() -> Iterator[Case]:
    """Yield a few small architectures from each of timm's source files, and those in `_MORE_TIMM`."""
    import timm
    from timm.models._registry import _model_to_module

    files: dict[str, list[str]] = {}
    for name in timm.list_models():
        if not name.startswith("test_"):
            files.setdefault(_model_to_module[name], []).append(name)
    chosen = set(_MORE_TIMM)
    for names in files.values():
        names.sort(key=_size)
        first_of: dict[str, str] = {}
        for name in names:
            first_of.setdefault(name.partition("_")[0].rstrip("0123456789"), name)
        chosen |= {*list(first_of.values())[:_PER_FILE], *names[:2]}
    for name in sorted(chosen):
        yield _timm(timm, name, _model_to_module[name])


def _size(name: str) -> tuple[int, int]:
    ranks = [rank for rank, part in enumerate(_SMALLEST) if part in name]
    return (min(ranks) if ranks else len(_SMALLEST), len(name))


def _timm(timm: Any, name: str, family: str) -> Case:
    config = timm.models.get_pretrained_cfg(name)
    side = config.input_size[-1] if config else 224
    options = {}
    if side > 512 or "dinov2" in name:
        options, side = {"img_size": 224}, 224
    flexible = not getattr(config, "fixed_input_size", False)
    sizes = ((128, 128), (side, side)) if flexible and side > 128 else ((side, side),)

    def build() -> nn.Module:
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **options)
        except TypeError:  # architectures for any size do not accept `img_size`
            model = timm.create_model(name, pretrained=False)
        return model

    return Case(f"timm:{name}", family, build, sizes)


def transformers_cases() -> Iterator[Case]:
    """Yield image models of Hugging Face with small configurations; for detectors, the best query is explained."""
    import transformers

    block = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    plain = {**block, "image_size": 96, "patch_size": 16}
    stages = {"depths": [1, 1, 2, 1]}
    configurations: dict[str, tuple[str, dict[str, Any]]] = {
        "ViTForImageClassification": ("ViTConfig", plain),
        "ViTMSNForImageClassification": ("ViTMSNConfig", plain),
        "DeiTForImageClassification": ("DeiTConfig", plain),
        "DeiTForImageClassificationWithTeacher": ("DeiTConfig", plain),
        "BeitForImageClassification": ("BeitConfig", plain),
        "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", plain),
        "IJepaForImageClassification": ("IJepaConfig", plain),
        "Dinov2ForImageClassification": ("Dinov2Config", {**plain, "image_size": 224, "patch_size": 14}),
        "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {**plain, "num_register_tokens": 4}),
        "SiglipForImageClassification": ("SiglipConfig", {"vision_config": plain}),
        "CLIPForImageClassification": ("CLIPConfig", {"vision_config": plain}),
        "SwinForImageClassification": ("SwinConfig", {"image_size": 224, "embed_dim": 24, **stages}),
        "Swinv2ForImageClassification": ("Swinv2Config", {"image_size": 256, "embed_dim": 24, **stages}),
        "ConvNextForImageClassification": ("ConvNextConfig", stages),
        "ConvNextV2ForImageClassification": ("ConvNextV2Config", stages),
        "FocalNetForImageClassification": ("FocalNetConfig", stages),
        "PvtForImageClassification": ("PvtConfig", {"image_size": 224, **stages}),
        "PvtV2ForImageClassification": ("PvtV2Config", stages),
        "PoolFormerForImageClassification": ("PoolFormerConfig", {}),
        "SwiftFormerForImageClassification": ("SwiftFormerConfig", {}),
        "LevitForImageClassification": ("LevitConfig", {"image_size": 224}),
        "MobileViTForImageClassification": ("MobileViTConfig", {}),
        "MobileViTV2ForImageClassification": ("MobileViTV2Config", {}),
        "MobileNetV1ForImageClassification": ("MobileNetV1Config", {}),
        "MobileNetV2ForImageClassification": ("MobileNetV2Config", {}),
        "EfficientNetForImageClassification": (
            "EfficientNetConfig",
            {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
        ),
        "HieraForImageClassification": ("HieraConfig", {"image_size": [224, 224], **stages}),
        "ResNetForImageClassification": ("ResNetConfig", stages),
        "RegNetForImageClassification": ("RegNetConfig", {}),
        "BitForImageClassification": ("BitConfig", stages),
        "SegformerForImageClassification": ("SegformerConfig", {}),
        "SegformerForSemanticSegmentation": ("SegformerConfig", {}),
        "MobileViTForSemanticSegmentation": ("MobileViTConfig", {}),
        "BeitForSemanticSegmentation": ("BeitConfig", {**plain, "num_hidden_layers": 12, "out_indices": [3, 5, 7, 11]}),
        "DPTForSemanticSegmentation": (
            "DPTConfig",
            {**plain, "num_hidden_layers": 12, "neck_hidden_sizes": [16, 24, 32, 48], "fusion_hidden_size": 32},
        ),
        "DetrForObjectDetection": ("DetrConfig", {"use_timm_backbone": False, "use_pretrained_backbone": False}),
    }
    for name, (config, options) in configurations.items():
        kind = "segmentation" if "Segmentation" in name else "detection" if "Detection" in name else "classification"
        found = (options.get("image_size"), options.get("vision_config", {}).get("image_size"), 128)
        side = next(value[0] if isinstance(value, list) else value for value in found if value)
        targets = {"segmentation": SegmentationTarget(None, 1), "detection": _best_query, "classification": None}[kind]
        yield Case(
            f"transformers:{name}", kind, _transformers(transformers, name, config, options), ((side, side),), targets
        )


def _transformers(transformers: Any, name: str, config: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        settings = getattr(transformers, config)(**options)
        model: nn.Module = getattr(transformers, name)(settings)
        return model

    return build


def _best_query(output: Any) -> Tensor:
    best: Tensor = output.logits[..., :-1].flatten(1).amax(1)
    return best


def open_clip_cases() -> Iterator[Case]:
    """Yield image towers of open_clip; the explained score is the similarity to a random embedding."""
    import open_clip

    for name in _OPEN_CLIP:
        config = open_clip.get_model_config(name)
        side = config["vision_cfg"].get("image_size", 224)
        reference = torch.randn(config["embed_dim"], generator=torch.Generator().manual_seed(0))
        build = _open_clip(open_clip, name)
        yield Case(f"open_clip:{name}", "image tower", build, ((side, side),), EmbeddingSimilarity(reference))


def _open_clip(open_clip: Any, name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        overrides = {"pretrained_hf": False}
        model: nn.Module = open_clip.create_model(name, pretrained=None, pretrained_image=False, **overrides).visual
        return model

    return build

"""What a heatmap costs beside a plain forward pass: time as interleaved ratios, memory as growth of a fresh process."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

import gradcam_kit
from benchmarks.measure import Ratio, Work, import_seconds, interleave, peak_growth

GRADIENT_METHODS = (
    gradcam_kit.GradCAM,
    gradcam_kit.GradCAMPlusPlus,
    gradcam_kit.HiResCAM,
    gradcam_kit.XGradCAM,
    gradcam_kit.LayerCAM,
)
TEN_METHODS = (
    *GRADIENT_METHODS,
    gradcam_kit.GradCAMElementwise,
    gradcam_kit.EinsumCAM,
    gradcam_kit.EigenCAM,
    gradcam_kit.EigenGradCAM,
    gradcam_kit.LaFAM,
)
_SEED = 0


def _model(name: str) -> nn.Module:
    torch.manual_seed(_SEED)
    model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    return model


def _images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(_SEED))


def _forward(model: nn.Module, images: Tensor) -> Work:
    def work() -> object:
        with torch.inference_mode():
            return model(images)

    return work


def resnet50(batch: int, rounds: int) -> dict[str, Ratio]:
    """Gradient methods, EinsumCAM, EigenCAM, Ablation-CAM and Recipro-CAM on ResNet-50, against its forward pass."""
    model, images = _model("resnet50"), _images(batch)
    cams = [method(model, "layer4") for method in GRADIENT_METHODS]
    deep = gradcam_kit.GradCAM(model, "layer3")
    einsum = gradcam_kit.EinsumCAM(model, "layer4")
    eigen = gradcam_kit.EigenCAM(model, "layer4")
    ten = [method(model, "layer4") for method in TEN_METHODS]
    recipro, ablation = gradcam_kit.ReciproCAM(model, "layer4"), gradcam_kit.AblationCAM(model, "layer4")
    every_class = torch.arange(1000).expand(batch, -1)
    works: dict[str, Work] = {
        "plain forward": _forward(model, images),
        "GradCAM, layer4": lambda: cams[0](images),
        "GradCAM, layer3": lambda: deep(images),
        "five gradient methods, explain_all": lambda: gradcam_kit.explain_all(cams, images),
        "ten methods, explain_all": lambda: gradcam_kit.explain_all(ten, images),
        "EinsumCAM, one class": lambda: einsum(images),
        "EinsumCAM, saliency of all 1000 classes": lambda: einsum.explain(images, every_class).saliency,
        "EigenCAM": lambda: eigen(images),
        "Recipro-CAM, layer4": lambda: recipro(images),
        "Ablation-CAM, layer4": lambda: ablation(images),
    }
    results = interleave(works, rounds, "plain forward")
    five, one = results["five gradient methods, explain_all"], results["GradCAM, layer4"]
    results["five gradient methods / one"] = Ratio(
        five.seconds, five.seconds / one.seconds, five.low / one.ratio, five.high / one.ratio
    )
    return results


def replay(rounds: int) -> dict[str, Ratio]:
    """Recipro-CAM and Ablation-CAM in the middle of ResNet-50 against one whole pass per masked row."""
    side, rows = 128, 64  # the layer has 8 x 8 positions
    model = _model("resnet50")
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(_SEED))
    recipro = gradcam_kit.ReciproCAM(model, "layer3", batch_size=rows)
    ablation = gradcam_kit.AblationCAM(model, "layer3", channels=rows, batch_size=rows)
    baseline = f"plain forward of {rows} images"
    works: dict[str, Work] = {
        baseline: _forward(model, image.expand(rows, -1, -1, -1).contiguous()),
        f"Recipro-CAM, layer3, {rows} positions": lambda: recipro(image),
        f"Ablation-CAM, layer3, {rows} channels": lambda: ablation(image),
    }
    return interleave(works, rounds, baseline)


def score_cam(rounds: int) -> dict[str, Ratio]:
    """Score-CAM on one image of ResNet-18 against one forward pass per live channel, in the same batches."""
    model, images = _model("resnet18"), _images(1)
    cam = gradcam_kit.ScoreCAM(model, "layer4", batch_size=32)
    rows = images.expand(32, -1, -1, -1).contiguous()
    forward = _forward(model, rows)
    activations = _features(model, images).flatten(2)
    live = int((activations.amax(2) != activations.amin(2)).sum())

    def forwards() -> None:
        for _ in range(-(-live // len(rows))):
            forward()

    return interleave(
        {f"plain forward of {live} images": forwards, f"ScoreCAM of {live} live channels": lambda: cam(images)},
        rounds,
        f"plain forward of {live} images",
    )


def _features(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        for name, module in model.named_children():
            images = module(images)
            if name == "layer4":
                break
    return images


def memory_forward() -> Work:
    return _forward(_model("resnet50"), _images(16))


def memory_grad_cam() -> Work:
    cam, images = gradcam_kit.GradCAM(_model("resnet50"), "layer4"), _images(16)
    return lambda: cam(images)


def memory_score_cam_64() -> Work:
    return _memory_score_cam(64)


def memory_score_cam_512() -> Work:
    return _memory_score_cam(512)


def _memory_score_cam(channels: int) -> Work:
    cam, images = gradcam_kit.ScoreCAM(_model("resnet18"), "layer4", channels=channels, batch_size=16), _images(1)
    return lambda: cam(images)


def memory() -> dict[str, float]:
    """Growth of the peak memory, in MB."""
    works = ("memory_forward", "memory_grad_cam", "memory_score_cam_64", "memory_score_cam_512")
    return {work.removeprefix("memory_"): peak_growth(f"benchmarks.ratios:{work}") for work in works}


def imports(rounds: int) -> dict[str, float]:
    """Seconds of imports in fresh processes."""
    return {module: import_seconds(module, rounds) for module in ("torch", "gradcam_kit")}

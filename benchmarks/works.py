"""Models, images and plain forward passes that the benchmarks share; weights and images are random, from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.measure import Work

SEED = 0
MODELS = (
    "resnet18",
    "resnet50",
    "vgg16",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
)


def build_model(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a torchvision architecture with random weights, in eval mode."""
    import torchvision  # takes more than a second, which benchmarks of other models save

    torch.manual_seed(SEED)
    model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not bool(parameter.any()):  # a head of zeros would stop every gradient
                nn.init.normal_(parameter, std=0.02)
    return model.to(device, dtype)


def build_images(batch: int, device: str = "cpu", dtype: torch.dtype = torch.float32, side: int = 224) -> Tensor:
    """Return noise in the shape of normalized images."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(SEED)).to(device, dtype)


def forward(model: nn.Module, images: Tensor) -> Work:
    """Return a function that runs a plain forward pass, without an explanation."""

    def work() -> object:
        with torch.inference_mode():
            return model(images)

    return work


def forward_work(name: str, batch: int, device: str = "cpu", side: int = 224, dtype: str = "float32") -> Work:
    """Build a model and images in the calling process, and return a function that runs a plain forward pass."""
    precision = getattr(torch, dtype)
    return forward(build_model(name, device, precision), build_images(batch, device, precision, side))

"""Networks for the tests of methods, in float64: small ones in 1, 2 and 3 dimensions, and torchvision's."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from models import TinyViT, seeded, tiny
from torch import Tensor, nn


class Blocks(nn.Module):
    """Two blocks that end after their ReLU, in 1, 2 or 3 dimensions, and a linear head behind mean pooling."""

    def __init__(self, dims: int = 2, channels: int = 6, classes: int = 5) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.block1 = nn.Sequential(conv(3, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.block2 = nn.Sequential(conv(channels, channels, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block2(self.block1(x)).flatten(2).mean(2))


def blocks(dims: int = 2, seed: int = 0, **options: int) -> nn.Module:
    """Seeded Blocks in float64."""
    return seeded(Blocks(dims, **options), seed).double()


def torchvision_model(name: str, classes: int = 10, **options: Any) -> nn.Module:
    """A torchvision network with seeded random weights, in float64 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name.startswith("vgg"):
            # Its classifier has 10^8 weights, so it is built without memory and gets a small one.
            with torch.device("meta"):
                features = torchvision.models.get_model(name, weights=None).features
            features = features.to_empty(device="cpu")
            for layer in features:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.normal_(layer.bias, std=0.1)
            head = nn.Sequential(nn.Flatten(), nn.Linear(512 * 4, 16), nn.ReLU(True), nn.Linear(16, classes))
            model: nn.Module = nn.Sequential()
            model.add_module("features", features)
            model.add_module("avgpool", nn.AdaptiveAvgPool2d(2))
            model.add_module("classifier", head)
        else:
            model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: no number is 0 or 1
                for values, low, high in (
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.7, 1.3),
                ):
                    nn.init.uniform_(values, low, high)
    return model.double().eval()


def resnet18() -> nn.Module:
    return torchvision_model("resnet18")


def vgg11() -> nn.Module:
    return torchvision_model("vgg11")


def mobilenet() -> nn.Module:
    return torchvision_model("mobilenet_v3_small")


def densenet() -> nn.Module:
    return torchvision_model("densenet121")


def tiny64() -> nn.Module:
    return tiny().double()


def flat64() -> nn.Module:
    return tiny(flatten=64, channels=4).double()


def signal() -> nn.Module:
    return blocks(1, seed=3)


def volume() -> nn.Module:
    return blocks(3)


def vit() -> nn.Module:
    return seeded(TinyViT()).double()


def vit_registers() -> nn.Module:
    """A class token and two registers."""
    return seeded(TinyViT(prefix=3, tokens=6)).double()


def vit_mean() -> nn.Module:
    """No class token: the patches are pooled by their mean."""
    return seeded(TinyViT(prefix=0, pool="mean", tokens=6)).double()

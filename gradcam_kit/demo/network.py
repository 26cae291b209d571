"""A small residual network for the demo pictures; 16 x 16 positions in its last stages make sharp heatmaps."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from gradcam_kit.demo.data import CLASS_NAMES, MEAN, SIDE, STD

CHECKPOINT = Path(__file__).parent / "demo.safetensors"


class Block(nn.Module):
    """Two convolutions and a shortcut: He et al., CVPR 2016, https://arxiv.org/abs/1512.03385.

    Average pooling halves the resolution. A convolution with stride 2 and an odd kernel would be centered half a pixel
    to the upper left of the area that its position covers. Over the stages such offsets add up and shift heatmaps.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, activations: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k2 h2 w2"]:
        """Run the block."""
        pooled = self.pool(activations)
        hidden = self.relu(self.bn1(self.conv1(pooled)))
        outputs: Tensor = self.relu(self.bn2(self.conv2(hidden)) + self.shortcut(pooled))
        return outputs


class DemoNet(nn.Module):
    """A classifier of eight shapes in 128 x 128 pictures; ``transform`` turns a picture into the input."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names = CLASS_NAMES
        self.transform = {"size": (SIDE, SIDE), "mean": MEAN, "std": STD}
        self.conv1 = nn.Conv2d(3, 16, 4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = Block(16, 16, halve=True)
        self.layer2 = Block(16, 32, halve=False)
        self.layer3 = Block(32, 64, halve=True)
        self.layer4 = Block(64, 96, halve=False)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(96, len(CLASS_NAMES))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits of normalized images."""
        stem = self.relu(self.bn1(self.conv1(images)))
        activations = self.layer4(self.layer3(self.layer2(self.layer1(stem))))
        logits: Tensor = self.fc(self.avgpool(activations).flatten(1))
        return logits


def load_demo_model() -> DemoNet:
    """Load the trained model, in eval mode, in float32 (the checkpoint is stored in float16)."""
    model = DemoNet()
    model.load_state_dict(load_file(CHECKPOINT))
    return model.eval()

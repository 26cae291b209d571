"""Networks for which the right answer is known by construction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Gate = Literal["and", "or"]
SCALE = 8.0


class Wired(nn.Module):
    """Detectors of red, green and blue, mean pooling, and a linear head with chosen weights.

    Red is evidence for class 0 and against class 1, green is the reverse, and blue has no effect. The contribution of
    each position to a logit is known exactly, with its sign: weight * activation / number of positions.

    Args:
        scale: factor for the weights.
    """

    weights = ((1.0, -1.0, 0.0), (-0.5, 1.0, 0.0))

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.detect = nn.Conv2d(3, 3, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.detect.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.fc.weight.copy_(scale * torch.tensor(self.weights))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.relu(self.detect(images)).mean((2, 3)))
        return logits


class Gated(nn.Module):
    """A gate over "there is red" and "there is green", each the sum of a detector over all positions divided by `area`.

    "and" is relu(red + green - 1). "or" is min(1, red + green), which saturates if both colors are present: a small
    change then has no effect, and the removal of one color has little. The output is multiplied by `SCALE`, so that it
    is as large as typical logits. Blue is detected but unused. The other class has the negative logit.

    Args:
        gate: "and" or "or".
        area: number of positions that a detector has to cover at full strength for a value of 1.
    """

    def __init__(self, gate: Gate, area: int) -> None:
        super().__init__()
        self.detect = nn.Conv2d(3, 3, 1, bias=False)
        self.relu = nn.ReLU()
        self.gate, self.area = gate, area
        with torch.no_grad():
            self.detect.weight.copy_(torch.eye(3).view(3, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        present = self.relu(self.detect(images)).sum((2, 3)) / self.area
        both = present[:, 0] + present[:, 1]
        output = (both - 1).relu() if self.gate == "and" else both - (both - 1).relu()
        return SCALE * torch.stack([output, -output], 1)


class HalfBlind(nn.Module):
    """A random network whose head sees only the upper half of the last maps, so the lower half cannot matter."""

    def __init__(self, side: int = 32, channels: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU()
        )
        self.rows = side // 4
        self.fc = nn.Linear(channels * self.rows * side // 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(images)[:, :, : self.rows].flatten(1))
        return logits


def half_blind(seed: int) -> HalfBlind:
    """Return a half-blind network with weights from a seed; the global random state is not changed."""
    generator = torch.Generator().manual_seed(seed)
    model = HalfBlind()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / max(fan_in, 2)) ** 0.5)
    return model.eval()


class Grid(nn.Module):
    """A network for mosaics of 2 x 2 images, with a logit for each class in each cell: `cell * classes + class`.

    Rao et al., CVPR 2022, arXiv 2205.10435. The logits of a cell are pooled only from the positions of this cell, so
    evidence in other cells is wrong. With `isolated` (DiFull), the body processes each cell separately. Otherwise
    (DiPart), receptive fields extend into neighboring cells, and only the head separates the cells.

    Args:
        body: function from images to maps.
        head: function from pooled maps to logits.
        isolated: True = DiFull, False = DiPart.
    """

    def __init__(self, body: nn.Module, head: nn.Module, *, isolated: bool) -> None:
        super().__init__()
        self.body, self.joint, self.head, self.isolated = body, nn.Identity(), head, isolated

    def forward(self, mosaics: Tensor) -> Tensor:
        maps = _join(self.body(_split(mosaics))) if self.isolated else self.body(mosaics)
        pooled = _split(self.joint(maps)).mean((2, 3))
        logits: Tensor = self.head(pooled).unflatten(0, (len(mosaics), 4)).flatten(1)
        return logits


def _split(maps: Tensor) -> Tensor:
    """Convert `(n, k, 2h, 2w)` to `(4n, k, h, w)`, with the cells of each image in reading order."""
    return torch.stack([cell for row in maps.chunk(2, 2) for cell in row.chunk(2, 3)], 1).flatten(0, 1)


def _join(cells: Tensor) -> Tensor:
    a, b, c, d = cells.unflatten(0, (-1, 4)).unbind(1)
    return torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)

"""Small seeded models for the tests, each with one property that matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a seeded random value without the global generator, and return the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim < 2 else 0.3))
    return module.eval()


def images(n: int = 3, c: int = 3, size: tuple[int, ...] = (16, 16), seed: int = 1) -> Tensor:
    """Seeded random images."""
    return torch.randn(n, c, *size, generator=torch.Generator().manual_seed(seed))


class TinyCNN(nn.Module):
    """Two stages, an in-place ReLU behind each convolution, and a head behind mean pooling or flattening."""

    def __init__(self, classes: int = 5, channels: int = 6, *, inplace: bool = True, flatten: int = 0) -> None:
        super().__init__()
        self.stage1 = nn.Conv2d(3, channels, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=inplace)
        self.stage2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.relu2 = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(channels * max(flatten, 1), classes)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.stage2(self.relu1(self.stage1(x))))
        return self.fc(x.flatten(1) if self.flatten else x.mean((2, 3)))


def tiny(**options: object) -> nn.Module:
    """A seeded TinyCNN."""
    return seeded(TinyCNN(**options))  # type: ignore[arg-type]


class Built(nn.Module):
    """Named parts, and a function of itself and the inputs as its forward pass."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def build(run: Callable[..., Any], **parts: nn.Module) -> nn.Module:
    """A seeded model from parts."""
    return seeded(Built(run, **parts))


def conv_model(
    behind: Callable[[Tensor], Tensor] = torch.relu,
    output: Callable[[Tensor], Any] = lambda logits: logits,
    before: Callable[[Tensor], Tensor] = lambda x: x,
) -> nn.Module:
    """`first` (convolution), `before`, `layer` (convolution), `behind`, mean, `fc` (5 classes), `output`."""
    return build(
        lambda m, x: output(m.fc(behind(m.layer(before(m.first(x)))).mean((2, 3)))),
        first=nn.Conv2d(3, 4, 3, padding=1),
        layer=nn.Conv2d(4, 6, 3, stride=2, padding=1),
        fc=nn.Linear(6, 5),
    )


class Apply(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


class Restless(nn.Module):
    """Batch norm and dropout, and an eval forward that writes a buffer and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.norm, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.stage2, self.relu2, self.fc = (
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Linear(6, 5),
        )
        self.register_buffer("calls", torch.zeros(()))
        self.fault = Apply(lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1 + torch.rand(())
        x = self.relu2(self.stage2(self.drop(self.norm(self.stage1(x)))))
        return self.fc(self.fault(x).mean((2, 3)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Patches of 4x4 pixels, two blocks, and a head behind the class token or behind the mean of the patches."""

    def __init__(
        self, *, prefix: int = 1, pool: str = "token", tokens: int = 16, width: int = 8, classes: int = 5
    ) -> None:
        super().__init__()
        self.patch, self.pool, self.prefix = nn.Conv2d(3, width, 4, stride=4), pool, prefix
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if prefix else None
        self.reg_token = nn.Parameter(torch.zeros(1, prefix - 1, width)) if prefix > 1 else None
        self.position = nn.Parameter(torch.zeros(1, prefix + tokens, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        before = [part.expand(len(x), -1, -1) for part in (self.cls_token, self.reg_token) if part is not None]
        return torch.cat([*before, x], 1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.tokens(x)))
        return self.head(x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(1))


class RestlessViT(TinyViT):
    """As Restless, a transformer."""

    def __init__(self) -> None:
        super().__init__(tokens=4)
        self.drop, self.fault = nn.Dropout(0.5), Apply(lambda x: x)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1 + torch.rand(())
        return self.fault(super().forward(self.drop(x)))

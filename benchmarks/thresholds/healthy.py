"""Healthy models, fresh and trained, for which the diagnostics must report nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.faults.trainings import batches, mlp
from gradcam_kit.demo.data import draw_batches
from gradcam_kit.demo.network import load_demo_model

Data = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Healthy:
    """A healthy model and its training.

    Attributes:
        make: function that builds the model, with weights from the global random state.
        data: function from a number of steps and a seed to batches.
        loss: function of output and labels.
        rate: learning rate of AdamW; 0 = only evaluated.
        classes: number of classes; 0 if the first loss is not judged.
    """

    make: Callable[[], nn.Module]
    data: Callable[[int, int], Data]
    loss: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    rate: float = 1e-3
    classes: int = 0


def pictures(steps: int, seed: int = 0, n: int = 32, size: int = 32) -> Data:
    """Yield noisy images whose brightness depends on the class."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.randint(0, 10, (n,), generator=generator)
        brightness = torch.linspace(-1, 1, 10)[labels, None, None, None]
        yield torch.randn(n, 3, size, size, generator=generator) + brightness, labels


def sequences(steps: int, seed: int = 0) -> Data:
    """Yield random sequences, with the label 1 if the sum of a sequence is positive, else 0."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, 12, 6, generator=generator)
        yield x, (x.sum((1, 2)) > 0).long()


def tokens(steps: int, seed: int = 0) -> Data:
    """Yield token sequences in which each token is the previous one plus 0, 1 or 2, modulo 100."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, 100, (16, 1), generator=generator)
        ids = (starts + torch.randint(0, 3, (16, 16), generator=generator).cumsum(1)) % 100
        yield ids, ids


def drawn(steps: int, seed: int = 0) -> Data:
    """Yield generated images of the demo, with their labels."""
    first = 1000 * seed
    for batch in draw_batches(range(first, first + 32 * steps), 32):
        yield batch.images, torch.as_tensor(batch.labels)


def clusters(steps: int, seed: int = 0) -> Data:
    """Return batches of noisy clusters, one cluster per class."""
    return batches(steps, seed=seed)


def next_token(output: Any, ids: Tensor) -> Tensor:
    """Return the cross-entropy of a language model."""
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def resnet18() -> nn.Module:
    return import_module("torchvision.models").resnet18(num_classes=10)  # type: ignore[no-any-return]


def mobilenet() -> nn.Module:
    return import_module("torchvision.models").mobilenet_v3_small(num_classes=10)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    create: Any = import_module("timm").create_model
    return create("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=6)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    transformers: Any = import_module("transformers")
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=3, n_head=4)
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Two LSTM layers followed by a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 32, num_layers=2, batch_first=True), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def normalized_mlp() -> nn.Module:
    layers = [part for i in range(6) for part in (nn.Linear(16 if i == 0 else 64, 64), nn.LayerNorm(64), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(64, 8))


MODELS = {
    "resnet18": Healthy(resnet18, pictures, classes=10),
    "mobilenet_v3_small": Healthy(mobilenet, pictures, classes=10),
    "vit_tiny": Healthy(vit, pictures, classes=10),
    "lstm": Healthy(Recurrent, sequences, classes=2),
    "gpt2": Healthy(gpt2, tokens, next_token, classes=100),
    "demo": Healthy(load_demo_model, drawn, rate=0.0),
    "demo, trained on": Healthy(load_demo_model, drawn, rate=1e-4),
    "mlp": Healthy(mlp, clusters),
    "mlp with LayerNorm": Healthy(normalized_mlp, clusters, classes=8),
}

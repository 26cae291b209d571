"""Healthy models, fresh and trained: no bad finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from models import Built
from torch import Tensor, nn
from torch.nn import functional
from trainings import found, train

from gradcam_kit.demo.data import draw_batches
from gradcam_kit.demo.network import load_demo_model
from gradcam_kit.diagnostics import ModelDiagnostics


def pictures(steps: int, n: int = 32, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        labels = torch.randint(0, 10, (n,), generator=generator)
        images = (
            torch.randn(n, 3, size, size, generator=generator) + torch.linspace(-1, 1, 10)[labels, None, None, None]
        )
        yield images, labels


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(num_classes=10)


def vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet18, mobilenet, vit])
def test_fresh_vision_models(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    report = train(model, optimizer=optimizer, data=pictures(4))
    assert found(report, "bad") == []


def test_a_recurrent_model() -> None:
    def sequences(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            x = torch.randn(32, 12, 6, generator=generator)
            yield x, (x.sum((1, 2)) > 0).long()

    torch.manual_seed(0)
    parts = {"lstm": nn.LSTM(6, 32, num_layers=2, batch_first=True), "head": nn.Linear(32, 2)}
    model = Built(lambda m, x: m.head(m.lstm(x)[0][:, -1]), **parts)
    report = train(model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), data=sequences(20))
    assert found(report, "bad") == []


def test_a_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=3, n_head=4)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).train()

    def tokens(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            ids = torch.randint(0, 100, (16, 16), generator=generator)
            yield ids, ids

    def loss(output: object, ids: Tensor) -> Tensor:
        return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())  # type: ignore[attr-defined]

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert found(train(model, optimizer=optimizer, data=tokens(8), loss=loss), "bad") == []


def test_the_trained_demo_model() -> None:
    model = load_demo_model()
    with ModelDiagnostics(model) as diagnostics:
        for batch in draw_batches(range(96), 32):
            model(batch.images)
    assert found(diagnostics.report(), "bad") == []

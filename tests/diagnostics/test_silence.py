"""Healthy models, fresh and trained: no bad finding. They are those over which the limits are measured."""

from __future__ import annotations

import pytest
import torch
from trainings import found, train

from benchmarks.thresholds.healthy import MODELS
from gradcam_kit.diagnostics import ModelDiagnostics, Report

SLOW = {"resnet18", "mobilenet_v3_small", "vit_tiny"}
NEEDS = {"vit_tiny": "timm", "gpt2": "transformers"}


def watched(name: str, steps: int) -> Report:
    torch.manual_seed(0)
    healthy = MODELS[name]
    model = healthy.make()
    if healthy.rate:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=healthy.rate)
        return train(model, optimizer=optimizer, data=healthy.data(steps, 0), loss=healthy.loss)
    with ModelDiagnostics(model.eval()) as diagnostics:
        for inputs, _ in healthy.data(steps, 0):
            model(inputs)
    return diagnostics.report()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", sorted(SLOW))
def test_vision_models(name: str, steps: int) -> None:
    pytest.importorskip(NEEDS.get(name, "torchvision"))
    assert found(watched(name, steps), "bad") == []


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param(name, steps, marks=pytest.mark.exhaustive if steps > (1 if "demo" in name else 4) else ())
        for name in sorted(set(MODELS) - SLOW)
        for steps in (1, 4, 20)
    ],
)
def test_small_models(name: str, steps: int) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"))
    assert found(watched(name, steps), "bad") == []

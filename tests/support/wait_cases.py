"""Methods, layers and targets of the tests that count waits for the device."""

from __future__ import annotations

import torch
from comparisons import is_for_transformers, layers_of
from models import images
from representatives import ON_CLASSES
from torch import Tensor

from gradcam_kit.targets import (
    ClassProbability,
    EmbeddingSimilarity,
    FinerTarget,
    LogitDifference,
    Negative,
    TopK,
)

LAYERS = [(name, layer) for name in ON_CLASSES for layer in layers_of(name)]
CLASSES = [0, 1, 2]


def pictures(name: str = "grad-cam") -> Tensor:
    return images(3, size=(16, 16) if is_for_transformers(name) else (16, 14)).double()


TARGETS = {
    "n": lambda: CLASSES,
    "int": lambda: 0,
    "probability": lambda: ClassProbability(CLASSES),
    "difference": lambda: LogitDifference(CLASSES, against=[1, 2, 3]),
    "all others": lambda: LogitDifference(CLASSES),
    "finer": lambda: FinerTarget(CLASSES),
    "top": lambda: TopK(2),
    "negative": lambda: Negative(CLASSES),
    "embedding": lambda: EmbeddingSimilarity(torch.arange(15.0).view(3, 5) + 1),
    "callable": lambda: lambda logits: logits[:, 1] * logits[:, 2],
}

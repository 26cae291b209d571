"""What a method gets to see, and how often it makes the model run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from models import TinyViT, seeded, tiny
from representatives import ON_CLASSES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradcam_kit import METHODS, BaseCAM
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice

TRANSFORMERS = {"attention-rollout", "generic-attention", "legrad", "grad-eclip", "vit-recipro-cam"}
ON_TOKENS = [name for name in METHODS if name in TRANSFORMERS]
"""The methods that explain transformers alone."""
ON_CNNS = [name for name in ON_CLASSES if name not in ON_TOKENS]
"""The methods that explain convolutional networks."""
LAYERED = [name for name in ON_CNNS if METHODS[name].layer_choice is not LayerChoice.INPUT]
"""Those that look at target layers, and not at the input alone."""
ANY_LAYER = [name for name in LAYERED if METHODS[name].needs & ~Evidence.WEIGHT_GRADIENTS != Evidence.HEAD]
"""Those that work at any layer: all but the ones that are nothing but a head."""


SHORT = {
    "rise": {"masks": 20},
    "sess": {"scales": 2},
    "ss-cam": {"samples": 2},
    "is-cam": {"samples": 2},
    "group-cam": {"groups": 4},
    "smooth-grad-cam++": {"samples": 2},
    "integrated-grad-cam": {"steps": 3},
    "expected-grad-cam": {"samples": 2},
}


def quick(name: str) -> Callable[..., BaseCAM]:
    """The class of a method, with options that take little time."""
    return partial(METHODS[name], **SHORT.get(name, {}))


def subject(name: str, classes: int = 5) -> tuple[nn.Module, str]:
    """A model for images of 8x8 that a method can explain, and a layer of it."""
    if name in ON_TOKENS:
        return seeded(TinyViT(tokens=4, classes=classes)), "blocks.1.norm1"
    return tiny(classes=classes), "relu2"


class Spy(BaseCAM):
    """A method that keeps what it was given."""

    def __init__(self, *args: Any, needs: Evidence = Evidence.GRADIENTS, **options: Any) -> None:
        super().__init__(*args, **options)
        self.needs = needs
        self.seen: dict[str, LayerCapture] = {}

    def saliencies(self, layer: LayerCapture) -> Tensor:
        self.seen[layer.layer] = layer
        return super().saliencies(layer)

    def saliency(self, layer: LayerCapture) -> Tensor:
        return layer.activations.sum(1)


def evidence(model: nn.Module, layer: Any, images: Any, targets: Any = None, **options: Any) -> LayerCapture:
    """The capture of one layer."""
    spy = Spy(model, layer, **options)
    spy.explain(images, targets)
    (seen,) = spy.seen.values()
    return seen


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """The number of rows in each pass of a module."""
    rows: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


class Operations(TorchDispatchMode):
    """Every operation, forward and backward, and the largest tensor that any of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func.overloadpacket.__name__, args))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *made])
        return result

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of one operation."""
        return [args for called, args in self.calls if called == name]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    """Equal up to rounding."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance)

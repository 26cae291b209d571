"""Models, layers, images and classes for the tests of methods, and what plain hooks and autograd find in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from models import images as draw_images
from networks import (
    blocks,
    densenet,
    flat64,
    mobilenet,
    resnet18,
    signal,
    tiny64,
    vgg11,
    vit,
    vit_mean,
    vit_registers,
    volume,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Objective = Callable[[Tensor, int], Tensor]
"""From the logits `(classes,)` of one sample, and the class that is explained, to its score."""


def logit(logits: Tensor, target: int) -> Tensor:
    return logits[target]


def probability(logits: Tensor, target: int) -> Tensor:
    return logits.softmax(0)[target]


@dataclass(frozen=True)
class Case:
    """One layer of one float64 model, with images and the classes that are explained.

    Args:
        head: the linear layer behind the mean pooling of this very layer, if there is one.
        own_weight: without a head, the weight that EinsumCAM differentiates by, counted from the layer.
        grid: the positions of a token layer, whose `prefix` first tokens have none.
    """

    name: str
    build: Callable[[], nn.Module]
    layer: str
    size: tuple[int, ...]
    classes: tuple[Any, ...] = ((1, 3), (0, 2))
    head: str = ""
    own_weight: str = ""
    grid: tuple[int, ...] = ()
    prefix: int = 0

    @cached_property
    def model(self) -> nn.Module:
        return _built(self.build)

    @cached_property
    def images(self) -> Tensor:
        return draw_images(len(self.classes), size=self.size).double()

    @cached_property
    def targets(self) -> Tensor:
        return torch.tensor(self.classes)

    @cached_property
    def samples(self) -> dict[tuple[int, ...], Sample]:
        """Index in `(n,)` or `(n, m)` -> one image and one class."""
        plain = _plain(self.build)
        return {
            index: Sample(self, plain, self.images[index[0]], int(self.targets[index]))
            for index in np.ndindex(*self.targets.shape)
        }


@cache
def _built(build: Callable[[], nn.Module]) -> nn.Module:
    return build()


@cache
def _plain(build: Callable[[], nn.Module]) -> nn.Module:
    """A copy of its own, without in-place modules, for autograd and plain hooks."""
    model = copy.deepcopy(_built(build))
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model.eval().requires_grad_()


@dataclass(frozen=True)
class Sample:
    """One image and one class, looked at without the package: a batch of one, a plain hook, autograd, float64."""

    case: Case
    model: nn.Module
    image: Tensor
    target: int
    objective: Objective = logit

    def module(self, name: str = "") -> nn.Module:
        return self.model.get_submodule(name or self.case.layer)

    @cached_property
    def _pass(self) -> tuple[Tensor, Tensor]:
        """The layer's output, as a node of the graph, and the logits."""
        kept: list[Tensor] = []
        handle = self.module().register_forward_hook(lambda *a: kept.append(a[-1]) or a[-1].clone())
        with torch.enable_grad():
            logits = self.model(self.image[None])[0]
        handle.remove()
        return kept[0], logits

    def _maps(self, output: Tensor) -> Tensor:
        """`(k, *s)` of one sample's output."""
        if not self.case.grid:
            return output
        return output[self.case.prefix :].T.unflatten(1, self.case.grid)

    @property
    def activations(self) -> Tensor:
        return self._maps(self._pass[0][0].detach())

    @cached_property
    def score(self) -> Tensor:
        return self.objective(self._pass[1], self.target).detach()

    @cached_property
    def gradients(self) -> Tensor:
        """d score / d activations `(k, *s)`."""
        output, logits = self._pass
        gradient = torch.autograd.grad(self.objective(logits, self.target), output, retain_graph=True)[0][0]
        return self._maps(gradient)

    def at(self, image: Any) -> Sample:
        """The same class for another image."""
        return replace(self, image=torch.as_tensor(image))

    @cached_property
    def image_gradient(self) -> Tensor:
        leaf = self.image.clone().requires_grad_()
        return torch.autograd.grad(self.objective(self.model(leaf[None])[0], self.target), leaf)[0]

    @property
    def hessian(self) -> Tensor:
        """Second derivatives of the score with respect to the activations, `(k, *s, k, *s)`."""

        def score(activations: Tensor) -> Tensor:
            with self._substituted(activations):
                return self.objective(self.model(self.image[None])[0], self.target)

        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return torch.autograd.functional.hessian(score, self.activations)

    def outputs_and_gradients(self, modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
        """What each module returned, and d score / d that, without the axis for samples."""
        kept: dict[nn.Module, Tensor] = {}
        handles = [
            module.register_forward_hook(lambda module, _, output: kept.update({module: output})) for module in modules
        ]
        with torch.enable_grad():
            score = self.objective(self.model(self.image[None])[0], self.target)
        for handle in handles:
            handle.remove()
        outputs = [kept[module] for module in modules]
        gradients = torch.autograd.grad(score, outputs)
        return [(output[0].detach(), gradient[0]) for output, gradient in zip(outputs, gradients, strict=True)]

    @property
    def logit_gradients(self) -> Tensor:
        """d score / d logits `(classes,)`."""
        leaf = self._pass[1].detach().requires_grad_()
        return torch.autograd.grad(self.objective(leaf, self.target), leaf)[0]

    @property
    def own_weight_gradient(self) -> Tensor:
        """d sum of the layer's output / d `own_weight`, from an ordinary backward pass of this sample alone."""
        owner, _, name = self.case.own_weight.rpartition(".")
        weight = getattr(self.module().get_submodule(owner), name)
        return torch.autograd.grad(self._pass[0].sum(), weight, retain_graph=True)[0]

    @property
    def head_weight(self) -> Tensor:
        return self.module(self.case.head).weight.detach().flatten(1)

    def rescore(self, image: Any) -> float:
        """The score of a changed image `(c, *t)`."""
        with torch.no_grad():
            return float(self.objective(self.model(torch.as_tensor(image)[None])[0], self.target))

    def replay(self, activations: Any) -> float:
        """The score when the layer returns other activations `(k, *s)`, by a pass of the whole model."""
        with self._substituted(torch.as_tensor(activations)):
            return self.rescore(self.image)

    @contextmanager
    def _substituted(self, activations: Tensor) -> Iterator[None]:
        """The layer returns these activations; prefix tokens stay as they are."""
        output = activations
        if self.case.grid:
            output = torch.cat([self._pass[0][0].detach()[: self.case.prefix], activations.flatten(1).T])
        handle = self.module().register_forward_hook(lambda *_: output[None].clone())
        try:
            yield
        finally:
            handle.remove()


_SMALL, _LARGE = (16, 14), (64, 64)
SMALL = [
    Case("tiny last", tiny64, "relu2", _SMALL, head="fc"),
    Case("tiny signed last", tiny64, "stage2", _SMALL),
    Case("tiny earlier", tiny64, "relu1", _SMALL),
    Case("tiny signed earlier", tiny64, "stage1", _SMALL),
    Case("tiny flattened", flat64, "relu2", (16, 16)),
    Case("blocks last", blocks, "block2", _SMALL, head="fc"),
    Case("blocks earlier", blocks, "block1", _SMALL, own_weight="0.weight"),
    Case("signal last", signal, "block2", (21,), head="fc"),
    Case("signal earlier", signal, "block1", (21,), own_weight="0.weight"),
    Case("volume last", volume, "block2", (6, 8, 7), head="fc"),
    Case("volume earlier", volume, "block1", (6, 5, 7), own_weight="0.weight"),
]
LAST, EARLIER = SMALL[5:7]
# For transcriptions that are slower than the others.
MINI = [
    Case("mini last", blocks, "block2", (7, 6), head="fc"),
    Case("mini earlier", blocks, "block1", (4, 5), own_weight="0.weight"),
    Case("mini signed", tiny64, "stage1", (4, 5)),
    Case("mini signal", signal, "block1", (9,), own_weight="0.weight"),
]
VIT = [
    Case("vit token", vit, "blocks.1.norm1", (16, 16), grid=(4, 4), prefix=1, own_weight="weight"),
    Case("vit registers", vit_registers, "blocks.1.norm1", (8, 12), grid=(2, 3), prefix=3, own_weight="weight"),
    Case("vit patches", vit_mean, "blocks.1.norm1", (8, 12), grid=(2, 3), own_weight="weight"),
    Case("vit mean", vit_mean, "norm", (8, 12), grid=(2, 3), head="head"),
]
LARGE = [
    Case("resnet18 last", resnet18, "layer4", _LARGE, (3, 8), head="fc"),
    Case("resnet18 earlier", resnet18, "layer3", _LARGE, (3, 8), own_weight="1.bn2.weight"),
    Case("resnet18 signed", resnet18, "layer4.1.bn2", _LARGE, (3, 8), own_weight="weight"),
    Case("vgg11 last", vgg11, "features", _LARGE, (3, 8), own_weight="18.weight"),
    Case("vgg11 earlier", vgg11, "features.13", _LARGE, (3, 8)),
    Case("mobilenet last", mobilenet, "features", _LARGE, (3, 8), own_weight="12.1.weight"),
    Case("mobilenet earlier", mobilenet, "features.8", _LARGE, (3, 8), own_weight="block.3.1.weight"),
    Case("densenet last", densenet, "features", _LARGE, (3, 8), own_weight="norm5.weight"),
    Case("densenet earlier", densenet, "features.denseblock3", _LARGE, (3, 8)),
]
# Methods that run the model for every channel or position are compared on these and the small ones.
PERTURBED = [
    Case("resnet18 first", resnet18, "layer1", (16, 16), (3,)),
    Case("mobilenet middle", mobilenet, "features.8", (32, 32), (3,)),
]


def assert_same(found: Tensor, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal up to a share of the largest expected value, which is not zero."""
    expected = torch.as_tensor(np.asarray(expected))
    assert tuple(found.shape) == tuple(expected.shape)
    largest = float(expected.abs().max())
    assert largest > 0
    difference = float((found.double() - expected).abs().max())
    assert difference <= tolerance * largest, f"differs by {difference / largest:.3g} of the largest value"


def stack(case: Case, oracle: Callable[[Sample], Any], objective: Objective | None = None) -> Tensor:
    """The oracle's results for all samples, `(n, [m,] *s)`."""
    samples = case.samples.values()
    if objective:
        samples = [replace(sample, objective=objective) for sample in samples]
    maps = [np.asarray(oracle(sample)) for sample in samples]
    return torch.from_numpy(np.stack(maps)).unflatten(0, case.targets.shape)

"""The order of axes in memory in which a model runs fastest; shapes and results stay the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from gradcam_kit.capture.checks import once_more_if_misjudged
from gradcam_kit.capture.inputs import Inputs
from gradcam_kit.capture.state import version
from gradcam_kit.errors import GradCamKitError

_log = logging.getLogger("gradcam_kit")
_SMALLEST = 96 * 96
_refused: WeakSet[nn.Module] = WeakSet()
_Result = TypeVar("_Result")


@once_more_if_misjudged
def in_fastest_format(model: nn.Module, inputs: Inputs, work: Callable[[Inputs], _Result]) -> _Result:
    """Run `work` with pictures that the model gets in channels-last order where its kernels are fastest with it.

    The copy that the model gets anyway is made in that order. A model that fails on it and not without it (`view`
    behind a convolution reads the order in memory) is remembered, and gets its pictures as they are from then on.

    Args:
        model: what `work` runs.
        inputs: the call as the user makes it.
        work: the whole work, which leaves nothing behind when it raises.
    """
    if model in _refused or not _pays(inputs):
        return work(inputs)
    try:
        return work(replace(inputs, memory_format=torch.channels_last))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, GradCamKitError) and error.__cause__ is None:
            raise  # it says what is wrong with the call
        _log.debug("%s is tried without channels-last pictures: %s", type(model).__name__, error)
    result = work(inputs)
    _refused.add(model)
    return result


@dataclass
class OrderedWeights:
    """Copies of convolutions' weights in channels-last order, for the passes after the first of a call.

    In another order than the pictures, the kernels would copy them in each pass. Plain convolutions alone: a subclass
    may read the order in memory.
    """

    copies: dict[int, tuple[Tensor, int, nn.Parameter]] = field(default_factory=dict)
    """By weight, which is kept so that its id stays its own: itself, its version, and its copy."""

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Let the copies take the places of the weights, which come back after the pass, also after an error."""
        replaced: list[tuple[dict[str, nn.Parameter | None], nn.Parameter]] = []
        try:
            for module in model.modules():
                weight = module._parameters.get("weight") if type(module) is nn.Conv2d else None
                if weight is not None and not weight.is_contiguous(memory_format=torch.channels_last):
                    replaced.append((module._parameters, weight))
                    module._parameters["weight"] = self._copy(weight)
            yield
        finally:
            for store, weight in replaced:
                store["weight"] = weight

    def _copy(self, weight: Tensor) -> nn.Parameter:
        _, before, copy = self.copies.get(id(weight), (weight, None, None))
        if copy is None or before != version(weight):
            copy = nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last), requires_grad=False)
            self.copies[id(weight)] = weight, version(weight), copy
        return copy


def _pays(inputs: Inputs) -> bool:
    """Pictures on a CPU with oneDNN (about 0.7 of the time), and in half precision on CUDA's tensor cores.

    Small pictures gain nothing that is worth another order of rounding.
    """
    images = inputs.images
    if images.ndim != 4 or not images.is_contiguous() or images.shape[2] * images.shape[3] < _SMALLEST:
        return False
    if images.device.type == "cpu":
        return images.dtype != torch.float64 and torch.backends.mkldnn.is_available()
    if images.device.type != "cuda":
        return False
    precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else images.dtype
    return precision in (torch.float16, torch.bfloat16)

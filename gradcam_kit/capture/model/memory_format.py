"""The order of axes in memory in which a model runs fastest; shapes and results stay the same."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from gradcam_kit.capture.deferred_checks import retry_without_cache
from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.model.kept import normal_tensors_help
from gradcam_kit.capture.model.state import version
from gradcam_kit.errors import GradCamKitError, interruption, is_out_of_memory

_log = logging.getLogger("gradcam_kit")
_SMALLEST = 96 * 96
_refused: WeakSet[nn.Module] = WeakSet()
_Result = TypeVar("_Result")


@retry_without_cache
def in_fastest_format(model: nn.Module, inputs: Inputs, work: Callable[[Inputs], _Result]) -> _Result:
    """Run `work` with images that the model gets in channels-last order where its kernels are fastest with it.

    The copy that the model gets anyway is made in that order. A model that fails because of that order (`view` behind a
    convolution reads the order in memory) is remembered, and gets its images as they are from then on. Every other
    exception reaches the caller at once.

    Args:
        model: what `work` runs.
        inputs: the call as the user makes it.
        work: the whole work, which leaves nothing behind when it raises.
    """
    try:
        return _in_fastest_format(model, inputs, work)
    except Exception as error:
        if not normal_tensors_help(model, error):
            raise
    return _in_fastest_format(model, inputs, work)


def _in_fastest_format(model: nn.Module, inputs: Inputs, work: Callable[[Inputs], _Result]) -> _Result:
    if model in _refused or not _pays(inputs):
        return work(inputs)
    try:
        return work(replace(inputs, memory_format=torch.channels_last))
    except Exception as error:
        if not is_about_order(error):
            raise
        _log.debug("%s is tried without channels-last images: %s", type(model).__name__, error)
    result = work(inputs)
    _refused.add(model)
    return result


_ABOUT_ORDER = ("contiguous", "stride", "channels_last", "channels last", "channels-last", "memory format", "cudnn")
"""Words of errors that the order of axes in memory can cause; cuDNN says that it has no engine for such a tensor."""


def is_about_order(error: Exception) -> bool:
    """Whether an error is about memory order, judged by its message or by the text of the failed `assert`."""
    if isinstance(error, GradCamKitError):  # advice about images on which the model failed names the failure as cause
        if not isinstance(error.__cause__, Exception):
            return False
        error = error.__cause__
    if is_out_of_memory(error) or interruption(error) is not None:
        return False
    said = str(error)
    if isinstance(error, AssertionError):
        said += "".join(line.line or "" for line in traceback.extract_tb(error.__traceback__)[-1:])
    elif not isinstance(error, RuntimeError | ValueError | TypeError):
        return False
    return any(words in said.lower() for words in _ABOUT_ORDER)


@dataclass
class PackedWeights:
    """Convolutions' weights as their kernels read them, for the passes after the first of a call.

    From the parameters themselves, the kernels would make such a copy in each pass: in the order of the pictures, in
    the precision of autocast, and on a CPU in oneDNN's blocks. The parameters stay; only `_conv_forward` of plain
    convolutions, which gets them as arguments, is another one while a pass runs.
    """

    packed: dict[tuple[nn.Conv2d, torch.dtype, bool], tuple[Tensor, Tensor, int, Tensor]] = field(default_factory=dict)
    """By convolution, precision and whether in blocks: the weight, its memory, its version, and its copy.

    What a model writes into the memory of a weight past autograd (`weight.data.mul_`) between two passes is not seen.
    """
    failed: bool = False
    """Whether a kernel or a copy failed; from then on convolutions run as they are."""

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Let convolutions run with the copies, until the pass ends, also in an error."""
        replaced: list[nn.Conv2d] = []
        try:
            for module in model.modules():
                if type(module) is nn.Conv2d and "_conv_forward" not in module.__dict__:
                    replaced.append(module)  # first, because an interruption may come between the two
                    module.__dict__["_conv_forward"] = partial(self._forward, module)
            yield
        finally:
            for conv in replaced:
                conv.__dict__.pop("_conv_forward", None)

    def _forward(self, conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kind = maps.device.type
        autocast = torch.is_autocast_enabled(kind) and weight.dtype != torch.float64
        precision = torch.get_autocast_dtype(kind) if autocast else weight.dtype
        if self.failed or not _can_pack(conv, maps, weight) or not (autocast or maps.dtype == precision):
            return _forward(conv, maps, weight, bias)
        blocks = kind == "cpu" and _has_blocks(conv, precision) and not (torch.is_grad_enabled() and maps.requires_grad)
        try:
            return self._with_copy(conv, maps, weight, bias, precision, blocks)
        except (RuntimeError, AttributeError) as error:  # of a kernel that this release of torch lacks or refuses
            if is_out_of_memory(error) or interruption(error) is not None:
                raise
            _log.debug("passes go on with the model's own weights: %s", error)
            self.failed = True
        return _forward(conv, maps, weight, bias)

    def _with_copy(
        self,
        conv: nn.Conv2d,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        precision: torch.dtype,
        blocks: bool,
    ) -> Tensor:
        copy = self._copy(conv, weight, precision, blocks, maps.shape)
        if not blocks:
            return _forward(conv, maps, copy, bias)
        bias = None if bias is None else bias.to(precision)
        shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(maps.to(precision), copy, bias, *shape, "none", [], "")
        return found

    def _copy(self, conv: nn.Conv2d, weight: Tensor, precision: torch.dtype, blocks: bool, size: torch.Size) -> Tensor:
        key = conv, precision, blocks
        own, memory, before, copy = self.packed.get(key, (None, weight, -1, None))
        same = own is weight and memory.data_ptr() == weight.data_ptr() and before == version(weight)
        if copy is None or not same:
            copy = weight.detach().to(precision, memory_format=torch.channels_last)
            if blocks:
                shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
                copy = torch.ops.mkldnn._reorder_convolution_weight(copy, *shape, size)
            self.packed[key] = weight, weight.detach(), version(weight), copy
        return copy


def _forward(conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = nn.Conv2d._conv_forward(conv, maps, weight, bias)
    return found


def _can_pack(conv: nn.Conv2d, maps: Tensor, weight: Tensor) -> bool:
    """Whether nothing of this convolution is the user's own, and its pictures lie in channels-last order."""
    if weight is not conv._parameters.get("weight") or type(weight) is not nn.Parameter or type(maps) is not Tensor:
        return False
    there = maps.device == weight.device and maps.is_floating_point() and maps.ndim == 4
    return there and not weight.requires_grad and maps.is_contiguous(memory_format=torch.channels_last)


def _has_blocks(conv: nn.Conv2d, precision: torch.dtype) -> bool:
    """Whether oneDNN has a kernel of its own for this convolution, on this processor."""
    if not torch.backends.mkldnn.enabled or conv.padding_mode != "zeros" or type(conv.padding) is not tuple:
        return False
    if precision is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if precision is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return precision is torch.float32


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

"""Run models in the memory format in which they are fastest; shapes stay the same, and results up to rounding."""

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
    """Run `work` with images in channels-last memory format if the model's kernels are fastest in this format.

    The model gets a copy of the images anyway, so the change of format costs no extra copy. A model that fails because
    of the format (for example, in a `view` after a convolution) is remembered, and gets its images unchanged from then
    on. A failure on inference tensors is retried once, with clones. Every other exception reaches the caller.

    Args:
        model: the model that `work` runs.
        inputs: the inputs of the user's call.
        work: the function to run, which must be repeatable after an exception.
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
        _log.debug("retrying %s without channels-last images: %s", type(model).__name__, error)
    result = work(inputs)
    _refused.add(model)
    return result


_ABOUT_ORDER = ("contiguous", "stride", "channels_last", "channels last", "channels-last", "memory format", "cudnn")
"""Substrings of error messages that a memory format can cause, such as "cudnn" if cuDNN has no engine for it."""


def is_about_order(error: Exception) -> bool:
    """Whether an error is about the memory format, judged by its message or by the source line of a failed `assert`."""
    # an error that adds advice about the images has the model's own error as its cause
    if isinstance(error, GradCamKitError):
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
    """Copies of convolution weights in the form that kernels read, for all passes of a call after the first.

    Without these copies, the kernels would convert the parameters in every pass: to the memory format of the images,
    to the precision of autocast, and on a CPU to oneDNN's blocks. The parameters are not modified. Only
    `_conv_forward` of plain convolutions, which gets the weight as an argument, is replaced while a pass runs.
    """

    packed: dict[tuple[nn.Conv2d, torch.dtype, bool], tuple[Tensor, Tensor, int, Tensor]] = field(default_factory=dict)
    """Maps (convolution, precision, whether blocks are used) to (weight, alias of its memory, version, converted copy).

    Writes that bypass autograd, such as `weight.data.mul_(2)`, are not detected between two passes.
    """
    failed: bool = False
    """Whether a kernel or a copy failed, so that convolutions use their own weights from then on."""

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Let convolutions use the copies within the block, and restore them afterwards, even after an error."""
        replaced: list[nn.Conv2d] = []
        try:
            for module in model.modules():
                if type(module) is nn.Conv2d and "_conv_forward" not in module.__dict__:
                    replaced.append(module)  # recorded before the change, which may be interrupted
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
        # this release of torch does not have the kernel, or the kernel rejects its arguments
        except (RuntimeError, AttributeError) as error:
            if is_out_of_memory(error) or interruption(error) is not None:
                raise
            _log.debug("continuing with the model's own weights: %s", error)
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
    """Whether a convolution uses its own, frozen parameter, and its input is in channels-last memory format."""
    if weight is not conv._parameters.get("weight") or type(weight) is not nn.Parameter or type(maps) is not Tensor:
        return False
    there = maps.device == weight.device and maps.is_floating_point() and maps.ndim == 4
    return there and not weight.requires_grad and maps.is_contiguous(memory_format=torch.channels_last)


def _has_blocks(conv: nn.Conv2d, precision: torch.dtype) -> bool:
    """Whether oneDNN has a kernel with blocked weights for this convolution on this processor."""
    if not torch.backends.mkldnn.enabled or conv.padding_mode != "zeros" or type(conv.padding) is not tuple:
        return False
    if precision is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if precision is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return precision is torch.float32


def _pays(inputs: Inputs) -> bool:
    """Whether channels-last images pay off: with oneDNN (about 0.7 times the run time), or in half precision on CUDA.

    For small images, the gain does not justify a different rounding.
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

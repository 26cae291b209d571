"""Restore a model and random states after a check."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import InputError


@contextmanager
def left_as_found(model: nn.Module, *others: object, seed: int | None = None) -> Iterator[None]:
    """Restore the modes and buffers of a model, and random states, when a block ends, even after an error.

    Args:
        model: the model; its parameters are not restored, because no check changes them.
        others: other objects with tensors; random states of their devices are restored, too.
        seed: seed of torch's generators inside the block; None = their current state.
    """
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    known = [(module, set(module._buffers)) for module in modules]
    with random_states(model, *others, seed=seed), torch.inference_mode(False):
        try:
            yield
        finally:
            for module, names in known:
                for name in [name for name in module._buffers if name not in names]:
                    del module._buffers[name]
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer
                if buffer is not None and values is not None and not _equal(buffer, values):
                    with torch.no_grad():
                        buffer.copy_(values)
            for module, training in modes:
                if module.training != training:
                    module.training = training


@contextmanager
def random_states(*holders: object, seed: int | None = None) -> Iterator[None]:
    """Restore random states of torch (host and devices of the given objects), NumPy and Python when the block ends."""
    devices = {device for holder in holders for device in _devices(holder) if device.type not in ("cpu", "meta")}
    before, legacy, plain = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    with ExitStack() as stack:
        for device in devices:
            module = torch.get_device_module(device)
            stack.callback(module.set_rng_state, module.get_rng_state(device), device)
        stack.callback(torch.set_rng_state, before)
        stack.callback(np.random.set_state, legacy)
        stack.callback(random.setstate, plain)
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed all other devices
            for device in devices:
                with torch.get_device_module(device).device(device):
                    torch.get_device_module(device).manual_seed(seed)
        yield


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model without gradients, in train mode.

    Raises:
        InputError: a model that cannot be copied.
    """
    [twin] = copied_together(model)
    trained: nn.Module = twin.train()
    return trained


def copied_together(model: nn.Module, *others: Any) -> list[Any]:
    """Copy a model together with objects that refer to its parameters, such as an optimizer; return the model first.

    Raises:
        InputError: an object that cannot be copied.
    """
    try:
        copies: list[Any] = copy.deepcopy([model, *others])
    except Exception as error:  # objects in a module can refuse to be copied for any reason
        raise InputError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), but checks that train need a "
            "copy; remove the attributes that copy.deepcopy rejects"
        ) from error
    for parameter in copies[0].parameters():
        parameter.grad = None
    return copies


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer; None if the model has neither."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


def _devices(holder: object) -> Iterable[torch.device]:
    if isinstance(holder, nn.Module):
        return {tensor.device for tensors in (holder.parameters(), holder.buffers()) for tensor in tensors}
    return {leaf.device for leaf in tree_leaves(holder) if isinstance(leaf, Tensor)}


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; a tensor with NaN differs from every tensor, so it is always restored."""
    return a.shape == b.shape and torch.equal(a, b)

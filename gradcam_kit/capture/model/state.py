"""Put a model into the state for explaining it, and restore it exactly, even after an error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.model.forks import hooks_as_they_are, is_scripted, turn, undone_in_forks
from gradcam_kit.capture.model.kept import standing_in
from gradcam_kit.errors import InputError, kind_of

_active = threading.local()


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `DataParallel`, `DistributedDataParallel` and `torch.compile` wrappers.

    Compiled code ignores hooks that are added later, and replicas would overwrite each other's recorded activations.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_model(model: object) -> nn.Module:
    """Return the unwrapped model, or raise InputError for models that hooks cannot reach."""
    if not isinstance(model, nn.Module) or _is_wrapper(unwrap(model)):
        inner = getattr(model, "model", None)
        hint = (
            f"; pass the module in the attribute 'model' of this {type(model).__name__}"
            if isinstance(inner, nn.Module)
            else ""
        )
        what = "expected a torch.nn.Module" + (
            " whose call is its forward pass" if isinstance(model, nn.Module) else ""
        )
        raise InputError(f"model is {kind_of(model)}; {what}{hint}")
    model = unwrap(model)
    if is_scripted(model):
        raise InputError(
            f"{type(model).__name__} is a TorchScript module, whose layers cannot be observed; "
            "pass the original torch.nn.Module instead"
        )
    return model


def _is_wrapper(model: nn.Module) -> bool:
    """Whether calling a module runs a complete prediction, as the YOLO class does, instead of a forward pass."""
    own_call = type(model).__call__ is not nn.Module.__call__
    return (
        own_call and callable(getattr(model, "predict", None)) and isinstance(getattr(model, "model", None), nn.Module)
    )


@contextmanager
def untouched(
    model: nn.Module, device: torch.device, keep_modes: bool = False, *, restore_draws: bool = False
) -> Iterator[None]:
    """Hold `model` in eval mode with frozen parameters, and restore every flag, buffer and random state afterwards.

    Only one thread at a time holds a model. A second thread waits, even with another model, because models may share
    modules. If this thread holds the model already, entering again is a no-op.

    Args:
        model: the unwrapped model.
        device: device of the images.
        keep_modes: leave modules in train mode as they are. Their random draws, such as those of dropout, then advance
            the random states from call to call, as plain passes do.
        restore_draws: restore random states even if modules are left in train mode.
    """
    held: set[int] = _active.__dict__.setdefault("models", set())
    if id(model) in held:
        yield
        return
    modules = list(model.modules())  # walk only once, because this takes as long as running a small model
    is_random = keep_modes and any(module.training for module in modules)
    devices = {device, *(tensor.device for tensor in _stored(modules))}
    with (
        turn(),
        undone_in_forks() as changes,
    ):
        for change in (
            hooks_as_they_are(modules),
            _uncompiled(modules),
            nullcontext() if is_random and not restore_draws else _random_states(devices),
            _recurrent_layers(modules),
            _normal_tensors(modules),
            _buffers(modules, keep_modes),
            _modes_and_flags(modules, keep_modes),
        ):
            changes.enter_context(change)
        changes.enter_context(
            standing_in(modules)
        )  # after parameters were frozen, so that no clones replace parameters that modules keep in lists
        held.add(id(model))
        try:
            # Inference tensors cannot enter a graph, so leave inference mode for the duration of the call.
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            held.discard(id(model))


def models_held() -> int:
    """Return the number of models that this thread currently holds in `untouched`."""
    return len(_active.__dict__.get("models", ()))


@contextmanager
def _modes_and_flags(modules: list[nn.Module], keep_modes: bool) -> Iterator[None]:
    modes = [] if keep_modes else [(module, module.training) for module in modules]
    trainable = [tensor for tensor in _stored(modules) if tensor.requires_grad and tensor.is_leaf]
    try:
        for module, training in modes:
            if training:
                module.training = False
        # Without trainable parameters, the part before the target layer builds no graph and keeps no activations.
        for tensor in trainable:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor in trainable:
            tensor.requires_grad_(True)
        for module, training in modes:
            if module.training != training:
                module.training = training


@contextmanager
def _normal_tensors(modules: list[nn.Module]) -> Iterator[None]:
    """Replace parameters and buffers made under `inference_mode`, which cannot enter a graph, with clones."""
    stores = [store for module in modules for store in (module._parameters, module._buffers)]
    replaced = [
        (store, name, tensor)
        for store in stores
        for name, tensor in store.items()
        if tensor is not None and tensor.is_inference()
    ]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for store, name, tensor in replaced:
                store[name] = tensor.clone()  # type: ignore[assignment]
        yield
    finally:
        for store, name, tensor in replaced:
            store[name] = tensor  # type: ignore[assignment]


@contextmanager
def _buffers(modules: list[nn.Module], keep_modes: bool) -> Iterator[None]:
    """Restore buffers that the model writes even in eval mode (call counters, caches).

    Batch norms in train mode write their statistics without changing the version of the tensor, so the buffers of
    modules in train mode are always restored.
    """
    saved: list[tuple[nn.Module, str, Tensor | None, Tensor | None, int]] = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone(), version(buffer))
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    known = [(module, set(module._buffers)) for module in modules if not is_scripted(module)]
    try:
        yield
    finally:
        for module, names in known:
            for name in [name for name, _ in module._buffers.items() if name not in names]:
                del module._buffers[name]
        for module, name, buffer, values, before in saved:
            module._buffers[name] = buffer
            is_written = version(buffer) != before or (keep_modes and module.training)
            if buffer is not None and values is not None and is_written:
                with torch.no_grad():
                    buffer.copy_(values)


def version(tensor: Tensor | None) -> int:
    """Return the number of in-place changes of a tensor, or -1 for None and inference tensors, which count none."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _stored(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Yield all parameters and buffers."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor


@contextmanager
def _random_states(devices: set[torch.device]) -> Iterator[None]:
    """Restore the random states of the host and of the given devices."""
    modules = {device: torch.get_device_module(device) for device in devices if device.type not in ("cpu", "meta")}
    host = torch.get_rng_state()
    others = {device: module.get_rng_state(device) for device, module in modules.items()}
    try:
        yield
    finally:
        torch.set_rng_state(host)
        for device, module in modules.items():
            module.set_rng_state(others[device], device)


@contextmanager
def _recurrent_layers(modules: list[nn.Module]) -> Iterator[None]:
    """Run recurrent layers without cuDNN if a graph is built, because cuDNN has no backward pass in eval mode."""
    layers = [module for module in modules if isinstance(module, nn.RNNBase) and _is_on_cuda(module)]
    cudnn = torch.backends.cudnn
    before: list[bool] = []

    def enter(module: nn.Module, args: Any) -> None:
        before.append(cudnn.enabled)
        if torch.is_grad_enabled():
            cudnn.enabled = False

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if before:
            cudnn.enabled = before.pop()

    try:
        with holding_hooks() as attach:
            for layer in layers:
                attach.before(layer, enter)
                attach.after(layer, leave, always=True)
            yield
    finally:
        if before:  # the pass was interrupted inside a layer
            cudnn.enabled = before[0]


def _is_on_cuda(module: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in module.parameters())


def is_compiled(function: Any) -> bool:
    """Whether a function was compiled by `torch.compile`."""
    return hasattr(function, "_torchdynamo_orig_callable")


def _uncompiled(modules: list[nn.Module]) -> Any:
    """Return a context manager that runs compiled submodules eagerly, because compiled code would ignore the hooks."""
    # Importing the compiler takes seconds. If nobody has imported it, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    compiled = any(
        hasattr(m, "_orig_mod") or m._compiled_call_impl is not None or is_compiled(m.forward) for m in modules
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

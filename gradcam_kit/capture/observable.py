"""Decide which models, calls and values can be observed, and give a reason for those that cannot."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradcam_kit.capture.model.forks import is_scripted
from gradcam_kit.capture.model.state import unwrap
from gradcam_kit.errors import CaptureError, InputError, kind_of


def check_observable(model: object) -> nn.Module:
    """Return the unwrapped model, or raise InputError with a remedy if it cannot be observed."""
    if not isinstance(model, nn.Module):
        way_out = "; pass the torch.nn.Module that was exported" if "Exported" in type(model).__name__ else ""
        raise InputError(f"model is {kind_of(model)}; expected a torch.nn.Module{way_out}")
    if isinstance(model, nn.DataParallel):
        raise InputError(
            "DataParallel makes new copies of the model in each call, and copies are not observed; pass "
            "model.module and run it on one device, or use DistributedDataParallel and observe each rank"
        )
    context = getattr(model, "dynamo_ctx", None)
    if getattr(context, "fullgraph", False) or getattr(context, "nopython", False):
        raise InputError(
            "the model is compiled with fullgraph=True, which forbids observing its layers; pass the original module"
        )
    inner = unwrap(model)
    if is_scripted(inner):
        raise InputError(
            f"{type(inner).__name__} is a TorchScript module, whose layers cannot be observed; pass the original module"
        )
    if isinstance(inner, torch.fx.GraphModule) and not _calls_modules(inner):
        raise InputError(
            f"{type(inner).__name__} is an exported graph, in which layers are functions that cannot be observed; "
            "pass the original module"
        )
    return inner


def _calls_modules(graph: torch.fx.GraphModule) -> bool:
    return any(node.op == "call_module" and node.target != "_guards_fn" for node in graph.graph.nodes)


def in_backward() -> bool:
    """Whether this thread runs a backward pass, so that a running layer is being recomputed by checkpointing."""
    running = getattr(torch._C, "_current_graph_task_id", None)
    if running is not None:
        return bool(running() != -1)
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("backward", "unpack_hook") and "checkpoint" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def is_transformed() -> bool:
    """Whether torch runs under vmap, a functorch transform, or tracing, where tensors have no concrete values."""
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def unobservable(value: object) -> str | None:
    """Return a short reason why no statistics of an output's leaf can be computed, or None if they can."""
    if not isinstance(value, Tensor):
        return f"{kind_of(value)}, not a tensor"
    if value.layout != torch.strided:
        return f"a tensor with layout {str(value.layout).removeprefix('torch.')}"
    if value.is_nested:
        return "a nested tensor"
    if value.is_quantized:
        return "a quantized tensor"
    if not value.is_floating_point():
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    if value.is_meta:
        return "a tensor without values (meta)"
    if value.numel() == 0:
        return f"an empty tensor {tuple(value.shape)}"
    return None


def is_autograd_thread() -> bool:
    """Whether this thread was started outside Python, as autograd's threads are (one for each device)."""
    return isinstance(threading.current_thread(), threading._DummyThread)


def places(model: nn.Module) -> dict[str, object]:
    """Return the device and dtype of every parameter and buffer, and whether a lazy module has yet to build it."""
    return {
        name: (tensor.device, tensor.dtype, is_lazy(tensor))
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
    }


def check_unchanged(inner: nn.Module, before: Mapping[str, nn.Module], places_before: Mapping[str, object]) -> None:
    """Raise CaptureError if modules were added, replaced, moved or cast after `before` and `places_before`."""
    changed = [name for name, module in inner.named_modules() if not is_scripted(module) and name not in before]
    changed += [name for name, module in before.items() if _get(inner, name) is not module]
    if changed:
        raise CaptureError(
            f"modules of {type(inner).__name__} were added or replaced inside the block: {', '.join(changed[:5])}"
            f"{', ...' * (len(changed) > 5)}; their calls were not observed. Build the model before the block"
        )

    now = places(inner)
    moved = [name for name, place in places_before.items() if now.get(name, place) != place]
    if moved:
        names = dict.fromkeys(name.rpartition(".")[0] or type(inner).__name__ for name in moved)
        raise CaptureError(
            f"modules of {type(inner).__name__} were built, moved or cast inside the block: {', '.join([*names][:5])}"
            f"{', ...' * (len(names) > 5)}; values from before and after cannot be compared. Do this before the block"
        )


def _get(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def computes_relu(module: nn.Module) -> bool:
    """Whether an observed module is a ReLU without other hooks, so that its output follows from its input."""
    if type(module) is not nn.ReLU or "forward" in module.__dict__:
        return False
    return len(module._forward_hooks) == len(module._forward_pre_hooks) == 1 and not (
        nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    )

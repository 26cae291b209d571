"""Copy models completely, but without the graphs of the tensors that they keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradcam_kit.errors import GradCamKitError, InputError, kind_of, raise_interruption


def copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with a model.

    Tensors that belong to a graph, such as features of the last pass or the weight that `weight_norm` computed, are
    copied by value. A `forward` that was replaced by a compiled one is copied uncompiled.

    Raises:
        InputError: an attribute cannot be copied, or its copy would run the original; the message names the attribute
            if it can be found.
    """
    memo: dict[int, Any] = {}
    _check_forwards(model)
    try:
        with torch.inference_mode(False), _WithoutGraphs():
            found = copy.deepcopy(model, memo)
    except GradCamKitError:
        raise
    except Exception as error:
        raise_interruption(error)
        raise _uncopied(model, error) from error
    for module in model.modules():
        own = vars(module).get("forward")
        if own is not None and (inner := _compiled_from(own)) is not None:
            memo[id(module)].__dict__["forward"] = MethodType(inner.__func__, memo[id(inner.__self__)])
    return found


class _WithoutGraphs(TorchFunctionMode):
    """Lets `copy.deepcopy` copy tensors that are not leaves of their graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _compiled_from(function: Any) -> MethodType | None:
    """Return the bound method that `torch.compile` compiled into this function, or None for any other function."""
    inner = getattr(function, "_torchdynamo_orig_callable", None)
    while inner is not None and not isinstance(inner, MethodType):
        inner = getattr(
            inner, "__wrapped__", None
        )  # there are up to two wrappers around functions of torch's own files
    return inner if inner is not None and isinstance(inner.__self__, nn.Module) else None


def _check_forwards(model: nn.Module) -> None:
    """Refuse functions that replace `forward` and hold modules of this model, because a copy would run the original."""
    modules = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        own = vars(module).get("forward")
        if own is None or hasattr(module, "_orig_mod"):
            continue
        inner = _compiled_from(own)
        inside = inner is not None and id(inner.__self__) in modules
        if inside or not any(id(held) in modules for held in _modules_of(own)):
            continue
        path = f"{name}.forward" if name else "forward"
        raise InputError(
            f"{type(model).__name__} cannot be copied: its attribute {path!r} is a function that holds the model, so "
            "the copy would run the original; bind it with types.MethodType(function, module), or name a factory "
            "'package.module:function' that makes the model"
        )


def _modules_of(function: Any) -> Iterator[nn.Module]:
    """Yield the modules that a function holds in its closure or as global variables."""
    function = getattr(function, "_torchdynamo_orig_callable", function)
    if isinstance(function, MethodType):
        function = function.__func__  # `copy.deepcopy` binds it to the copy of its module
    if not isinstance(function, FunctionType):
        return
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # an empty cell raises this error
            continue
        held = getattr(held, "__self__", held)
        if isinstance(held, nn.Module):
            yield held
    for name in function.__code__.co_names:
        held = function.__globals__.get(name)
        if isinstance(held, nn.Module):
            yield held


def _uncopied(model: nn.Module, error: Exception) -> InputError:
    """Return the error that names the attribute at which a copy failed."""
    said = str(error).partition("\n")[0]
    for name, module in model.named_modules():
        rest = {id(part): part for part in model.modules()}
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                with torch.inference_mode(False), _WithoutGraphs():
                    copy.deepcopy(value, dict(rest))
            except Exception as again:
                raise_interruption(again)
                path = f"{name}.{key}" if name else key
                return InputError(
                    f"{type(model).__name__} cannot be copied: its attribute {path!r} holds "
                    f"{kind_of(value)} that cannot be copied ({said}); remove it first, or name a factory "
                    "'package.module:function' that makes the "
                    "model"
                )
    return InputError(
        f"{type(model).__name__} cannot be copied ({said}); name a factory 'package.module:function' that makes it"
    )


def carried_transform(model: nn.Module) -> Any:
    """Return the `transform` that a model carries; None for a detector, whose transform is part of its forward pass."""
    transform = getattr(model, "transform", None)
    return None if type(transform).__module__.startswith("torchvision.models.") else transform

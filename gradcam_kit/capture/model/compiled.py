"""Compile the parts of a model that do not need hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gradcam_kit.capture.model.layers import split_name


@dataclass(frozen=True)
class _Parts:
    """Number of compiled parts of a model, and the layers that were left out."""

    number: int
    layers: frozenset[str]


_parts: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()


def compile_around(model: nn.Module, layers: Iterable[str], **options: Any) -> None:
    """Compile the largest modules that contain none of the layers. Passes with hooks on other layers run eagerly.

    Args:
        model: the model, which is changed in place.
        layers: names of the layers to which hooks may be attached.
        options: options of `torch.compile`.
    """
    layers, number = frozenset(layers), 0
    around = {model}
    for layer in layers:
        names = split_name(model, layer).path.split(".")
        around |= {model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)}
    for module in around:
        for child in module.children():
            if child not in around and any(True for _ in child.parameters()):
                child._compiled_call_impl = torch.compile(_call_of(child), **options)
                number += 1
    _parts[model] = _Parts(number, layers)


def _call_of(module: nn.Module) -> Callable[..., Any]:
    """Wrap a module's call in a function of this file, because the compiler skips torch's own files up to torch 2.11.

    For built-in modules, `nn.Module.compile` compiles a function in such a file, so none of their code would be
    compiled.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return call


def is_compiled_around(model: nn.Module, hooked: Iterable[str] = ()) -> bool:
    """Whether `compile_around` compiled parts of the model, and none of these parts contains the layers in `hooked`."""
    return model in _parts and _parts[model].layers.issuperset(hooked)


@contextmanager
def parts_compiled(model: nn.Module, hooked: Iterable[str] = ()) -> Iterator[None]:
    """Let the compiled parts run compiled even inside `untouched`, if only layers outside these parts have hooks.

    Args:
        model: the model that is run.
        hooked: the names of all layers that have hooks.
    """
    if not is_compiled_around(model, hooked):
        yield
        return
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    # All parts count towards one limit, because the compiler sees the same function for each of them.
    with config.patch({name: getattr(config, name) * _parts[model].number}), torch.compiler.set_stance("default"):
        yield

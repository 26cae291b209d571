"""Observe any number of the user's own passes, in train or eval mode, without changing the model.

`observe` holds hooks on layers for the duration of a block and reports every call to an observer. It leaves out other
threads and calls under vmap or tracing, and marks calls in which checkpointing recomputes a layer during the backward
pass.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gradcam_kit.capture.attaching import Hooks, holding_hooks
from gradcam_kit.capture.model.forks import is_scripted
from gradcam_kit.capture.model.state import models_held
from gradcam_kit.capture.observable import (
    check_observable,
    check_unchanged,
    in_backward,
    is_autograd_thread,
    is_transformed,
    places,
)

_log = logging.getLogger("gradcam_kit")


@dataclass(slots=True)  # not frozen: every call of a layer creates one, and creating a frozen one takes twice as long
class Call:
    """One call of one layer.

    Attributes:
        name: the layer's dotted name.
        module: the layer.
        step: number of the model's call to which this call belongs, counted from 1.
        index: number of earlier calls of the layer in this step.
        args: positional arguments; in `Observer.leave`, the module may have changed them in place.
        kwargs: keyword arguments.
        output: output of the layer; None in `Observer.enter`.
        recomputed: whether checkpointing is recomputing the layer during the backward pass.
    """

    name: str
    module: nn.Module
    step: int
    index: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    recomputed: bool


class Observer:
    """Receives the events of passes. A subclass overrides the methods that it needs. Return values are ignored."""

    def begin(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Handle the start of a call of the model."""

    def enter(self, call: Call) -> None:
        """Handle the start of a call of a layer."""

    def leave(self, call: Call) -> None:
        """Handle the end of a call of a layer."""

    def end(self, step: int, output: Any) -> None:
        """Handle the end of a call of the model."""


@dataclass(eq=False)
class Observation:
    """State of a block of observed passes.

    Attributes:
        model: the unwrapped model.
        layers: the observed modules by name.
        attach: holds further hooks of the block, such as hooks on gradients.
        every: observe every `every`-th step, beginning with the first.
        step: number of calls of the model so far.
        active: whether the running step is observed.
        ran: names of the layers that ran in observed steps.
        notes: remarks on what was not observed, and why; each at most once.
        paused: while True, nothing is observed.
        without_model: whether the current step began with a layer, because the model itself was not called.
        has_ended: whether a step without the model has ended, so that the next call of a layer begins a new step.
        held: number of models that this thread held `untouched` when the block began; while the thread holds more, this
            package is running a model, whose passes are not observed.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    attach: Hooks
    every: int = 1
    step: int = 0
    active: bool = False
    paused: bool = False
    without_model: bool = False
    has_ended: bool = False
    held: int = 0
    ran: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note and log it, unless the same note has been added before."""
        if text not in self.notes:
            self.notes.append(text)
            _log.warning(text)

    def end_step(self) -> None:
        """End a step in which only layers are called, as in a loop that never calls the model itself."""
        self.has_ended = self.without_model

    @property
    def ignores(self) -> bool:
        """Whether nothing is observed now, during a pause or a pass that this package runs."""
        return self.paused or models_held() > self.held

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Names of the layers that did not run in any observed step."""
        return tuple(name for name in self.layers if name not in self.ran)


@contextmanager
def observe(
    model: nn.Module, layers: Mapping[str, nn.Module], observer: Observer, *, every: int = 1, enter: bool = False
) -> Iterator[Observation]:
    """Report the calls of `layers` to `observer` during the block.

    Args:
        model: the user's model, possibly wrapped; `layers` are modules of the unwrapped model.
        layers: the modules to observe by name, from `select_layers`.
        observer: receives the calls of this thread, and recomputations in autograd's threads.
        every: observe every `every`-th step, beginning with the first.
        enter: call `observer.enter` before layers run.

    Raises:
        InputError: the layers of the model cannot be observed.
        CaptureError: modules of the model were added or replaced inside the block.
    """
    inner = check_observable(model)
    before = {name: module for name, module in inner.named_modules() if not is_scripted(module)}
    places_before = places(inner)
    with ExitStack() as stack:
        attach = stack.enter_context(holding_hooks(every_thread=True, protect_copies=True))
        observation = Observation(inner, dict(layers), attach, every, held=models_held())
        if runs_compiled(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            observation.note(
                "The model is compiled, but runs eagerly while it is observed, so values may differ by rounding from "
                "those of the compiled model."
            )
        watch = _Watch(observation, observer)
        attach.before(inner, watch.begin, with_kwargs=True)
        fast = {name: part for name, part in before.items() if part is not inner and isinstance(part, _FAST_PATH)}
        watch.optional = [_OptionalLayers(name, part) for name, part in fast.items()]
        inside = {part: group for group in watch.optional for part in group.encoder.modules()}
        for name, module in layers.items():
            if module in inside:
                inside[module].layers[name] = module
            else:
                watch.attach(attach, name, module, enter)
        for group in watch.optional:
            stack.callback(group.close)
            group.enter = enter
            group.switch(watch)
        attach.after(inner, watch.end, with_kwargs=True)
        yield observation
    check_unchanged(inner, before, places_before)


class _Watch:
    """The hooks of one block, which decide which calls are observed, and to which step they belong."""

    def __init__(self, observation: Observation, observer: Observer) -> None:
        self.observation, self.observer = observation, observer
        self.calls: dict[str, int] = {}
        self.optional: list[_OptionalLayers] = []

    def attach(self, hooks: Hooks, name: str, module: nn.Module, enter: bool) -> None:
        """Register the hooks of one layer."""
        if enter:
            hooks.before(module, self._entering(name), with_kwargs=True)
        hooks.after(module, self._leaving(name), with_kwargs=True)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = self.observation
        if seen.ignores or not seen.attach.in_own_thread or in_backward():
            return
        seen.without_model = False
        for group in self.optional:
            group.switch(self)
        self._next_step(args, kwargs)

    def _next_step(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen = self.observation
        if is_transformed():
            seen.active = False
            seen.note("Calls under vmap, functorch transforms or tracing are not observed.")
            return
        seen.step += 1
        seen.has_ended = False
        seen.active = (seen.step - 1) % seen.every == 0
        self.calls.clear()
        self.observer.begin(seen.step, args, kwargs)

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen = self.observation
        if seen.active and not seen.ignores and seen.attach.in_own_thread and not in_backward():
            self.observer.end(seen.step, output)

    def _counts(self) -> tuple[bool, bool]:
        """Return whether this call is observed, and whether it is a recomputation."""
        seen = self.observation
        if seen.ignores or (seen.step and not seen.active and not seen.has_ended):
            return False, False
        recomputed = in_backward()
        if not seen.attach.in_own_thread and not (recomputed and is_autograd_thread()):
            return False, False
        if not seen.step or (seen.has_ended and not recomputed):  # a layer was called directly, not by the model
            seen.without_model = True
            self._next_step((), {})
        return seen.active and not is_transformed(), recomputed

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            counts, recomputed = self._counts()
            if counts:
                seen = self.observation
                index = self.calls.get(name, 0)
                self.observer.enter(Call(name, module, seen.step, index, args, kwargs, None, recomputed))

        return hook

    def _leaving(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            counts, recomputed = self._counts()
            if counts:
                seen = self.observation
                index = self.calls.get(name, 0)
                if not recomputed:
                    self.calls[name] = index + 1
                    seen.ran.add(name)
                self.observer.leave(Call(name, module, seen.step, index, args, kwargs, output, recomputed))

        return hook


_FAST_PATH = (nn.TransformerEncoderLayer,)


@dataclass(eq=False)
class _OptionalLayers:
    """Layers inside an `nn.TransformerEncoderLayer`, which does not take its fast path if they have hooks."""

    name: str
    encoder: nn.Module
    layers: dict[str, nn.Module] = field(default_factory=dict)
    enter: bool = False
    block: ExitStack | None = None

    def switch(self, watch: _Watch) -> None:
        """Hold the hooks except where the fast path may be taken: hooks would disable it and change the rounding."""
        graph = torch.is_grad_enabled() and any(own.requires_grad for own in self.encoder.parameters())
        fast = not self.encoder.training and not graph
        if fast and self.layers:
            self.close()
            watch.observation.note(
                f"Layers inside {self.name!r} were not observed: in eval mode without gradients "
                f"{type(self.encoder).__name__} runs on a fast path that calls none of them. Observe it in "
                "train mode or with gradients enabled."
            )
        elif not fast and self.block is None:
            self.block = ExitStack()
            hooks = self.block.enter_context(holding_hooks(every_thread=True, protect_copies=True))
            for name, module in self.layers.items():
                watch.attach(hooks, name, module, self.enter)

    def close(self) -> None:
        """Remove the hooks."""
        if self.block is not None:
            self.block.close()
            self.block = None


def runs_compiled(model: nn.Module) -> bool:
    """Whether any part of the model is compiled, so that hooks would not fire."""
    # Do not load the compiler, which takes seconds: if it was never loaded, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return False
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())

"""Hold hooks for the duration of a block, in one or all threads, and optionally keep them out of model copies.

    with holding_hooks() as attach:
        attach.before(module, enter)
        attach.after(module, leave)
        output = model(images)

When the block ends, even by an error, an interruption or a closed generator, all hooks are removed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_FEWEST_PRUNED = 64
_lock = threading.Lock()
"""Guards the copy protections, which blocks in several threads may share."""


def _after_fork() -> None:
    """Replace the lock in a forked process, where the thread that would release it no longer exists."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Hooks:
    """The hooks of one block, created by `holding_hooks` and removed when the block ends.

    Hooks of modules and optimizers run in the thread that entered the block, or in every thread. Hooks of gradients run
    wherever autograd runs them, which may be a separate thread for each device.
    """

    def __init__(self, every_thread: bool, protect_copies: bool) -> None:
        self._owner = threading.get_ident()
        self._thread = None if every_thread else self._owner
        self._protect_copies = protect_copies
        self._held: list[tuple[RemovableHandle, _Hook]] = []
        self._protections = ExitStack()
        self._short_lived: list[tuple[RemovableHandle, _Hook]] = []
        self._limit = _FEWEST_PRUNED

    @property
    def in_own_thread(self) -> bool:
        """Whether the caller runs in the thread that entered the block."""
        return threading.get_ident() == self._owner

    def before(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Call `hook(module, args[, kwargs])` before `module` runs.

        A return value other than None replaces the arguments. A TorchScript module does not accept hooks and is
        skipped.
        """
        if not isinstance(module, torch.jit.ScriptModule):
            own = self._guarded(hook)
            self._keep(module.register_forward_pre_hook(own, with_kwargs=with_kwargs), own)
            self._protect_copies_of(module)

    def after(
        self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False, always: bool = False
    ) -> None:
        """Call `hook(module, args[, kwargs], output)` after `module` has run.

        A return value other than None replaces the output.

        Args:
            module: the module; a TorchScript module does not accept hooks and is skipped.
            hook: the function to call.
            with_kwargs: pass the keyword arguments to the hook as well.
            always: call the hook even if the module raised an exception.
        """
        if not isinstance(module, torch.jit.ScriptModule):
            own = self._guarded(hook)
            self._keep(module.register_forward_hook(own, with_kwargs=with_kwargs, always_call=always), own)
            self._protect_copies_of(module)

    def on_gradient(self, tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> None:
        """Call `hook(gradient)` once the gradient of `tensor` is complete; a result other than None replaces it."""
        own = _Hook(hook, None)
        self._keep_while_alive(tensor.register_hook(own), own)

    def on_accumulation(self, parameter: Tensor, hook: Callable[[Tensor], None]) -> None:
        """Call `hook(parameter)` after a gradient has been added to `parameter.grad`."""
        own = _Hook(hook, None)
        self._keep(parameter.register_post_accumulate_grad_hook(own), own)

    def before_node(self, node: Any, hook: Callable[[tuple[Tensor | None, ...]], Any]) -> None:
        """Call `hook(gradients of the outputs)` before a node of the graph runs backward."""
        own = _Hook(hook, None)
        self._keep_while_alive(node.register_prehook(own), own)

    def after_node(self, node: Any, hook: Callable[..., Any]) -> None:
        """Call `hook(gradients of the inputs, gradients of the outputs)` after a node of the graph has run backward."""
        own = _Hook(hook, None)
        self._keep_while_alive(node.register_hook(own), own)

    def before_step(self, optimizer: torch.optim.Optimizer, hook: Callable[..., Any]) -> None:
        """Call `hook(optimizer, args, kwargs)` before each step of an optimizer."""
        own = self._guarded(hook)
        self._keep(optimizer.register_step_pre_hook(own), own)

    def after_step(self, optimizer: torch.optim.Optimizer, hook: Callable[..., Any]) -> None:
        """Call `hook(optimizer, args, kwargs)` after each step of an optimizer."""
        own = self._guarded(hook)
        self._keep(optimizer.register_step_post_hook(own), own)

    def close(self) -> None:
        """Remove every hook: first those of gradients and nodes, then the others, each group in reverse order."""
        try:
            for held in (self._short_lived, self._held):
                while held:
                    handle, hook = held[-1]
                    hook.disable()
                    handle.remove()
                    held.pop()
        finally:
            if self._short_lived or self._held:  # a signal handler raised an exception in the loop
                self.close()
            self._protections.close()

    def _guarded(self, hook: Callable[..., Any]) -> _Hook:
        return _Hook(hook, self._thread)

    def _keep(self, handle: RemovableHandle, hook: _Hook) -> None:
        self._held.append((handle, hook))

    def _keep_while_alive(self, handle: RemovableHandle, hook: _Hook) -> None:
        # Handles keep neither tensors nor graphs alive. Drop handles of freed tensors, so that the list does not grow.
        self._short_lived.append((handle, hook))
        if len(self._short_lived) > self._limit:
            self._short_lived = [own for own in self._short_lived if own[0].hooks_dict_ref() is not None]
            self._limit = max(_FEWEST_PRUNED, 2 * len(self._short_lived))

    def _protect_copies_of(self, module: nn.Module) -> None:
        if not self._protect_copies:
            return
        with _lock:
            protection = module.__dict__.get(_PROTECTED)
            if not isinstance(protection, _CopiedWithoutHooks):
                protection = _CopiedWithoutHooks(module)
            protection.blocks += 1
        self._protections.callback(protection.release)


@contextmanager
def holding_hooks(*, every_thread: bool = False, protect_copies: bool = False) -> Iterator[Hooks]:
    """Hold hooks for the duration of the block.

    Args:
        every_thread: run the hooks of modules and optimizers in every thread, not only in the calling one.
        protect_copies: keep the hooks of modules out of deep copies and pickles. This costs some work per module, so
            use it only where the user's own code runs inside the block and may copy the model.
    """
    hooks = Hooks(every_thread, protect_copies)
    try:
        yield hooks
    finally:
        hooks.close()


class _Hook:
    """A hook function that runs in one thread only, or in all threads, until its block ends."""

    __slots__ = ("function", "thread")
    __torch_unserializable__ = True  # avoids torch's warning that hooks of a saved tensor are lost

    def __init__(self, function: Callable[..., Any], thread: int | None) -> None:
        self.function, self.thread = function, thread

    def __call__(self, *args: Any) -> Any:
        if self.thread is None or threading.get_ident() == self.thread:
            return self.function(*args)
        return None

    def disable(self) -> None:
        """Do nothing in later calls, even in a call for which torch has already looked up the hook."""
        self.function = _do_nothing

    def __reduce__(self) -> tuple[Any, ...]:
        # Where `_CopiedWithoutHooks` does not apply, a hook is copied or pickled as a function that does nothing.
        return _inert, ()


def _do_nothing(*_: Any) -> None:
    return None


def _inert() -> Callable[..., None]:
    return _do_nothing


_PROTECTED = "__reduce_ex__"
_HOOK_STORES = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}


class _CopiedWithoutHooks:
    """Replaces a module's `__reduce_ex__`, so that copies and pickles contain the user's hooks, but no `_Hook`."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.blocks = module, 0
        module.__dict__[_PROTECTED] = self
        if hasattr(type(module), "__deepcopy__"):
            module.__dict__["__deepcopy__"] = self.deepcopy

    def release(self) -> None:
        """Remove the protection when the last block that holds hooks on the module ends."""
        with _lock:
            self.blocks -= 1
            if self.blocks == 0:
                _strip(self.module.__dict__)

    def __call__(self, protocol: Any) -> Any:
        own = self.module.__dict__
        protections = _strip(own)  # the class's own method might copy the protection along with the attributes
        try:
            reduced = type(self.module).__reduce_ex__(self.module, protocol)
        finally:
            own.update(protections)
        if not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced
        state = reduced[2]
        if isinstance(state, dict):
            state = _without_hooks(state)
        elif isinstance(state, tuple) and state and isinstance(state[0], dict):
            state = (_without_hooks(state[0]), *state[1:])
        return (*reduced[:2], state, *reduced[3:])

    def deepcopy(self, memo: dict[int, Any]) -> nn.Module:
        """Copy with the class's own `__deepcopy__`, then remove the hooks from the copy."""
        own = self.module.__dict__
        protections = _strip(own)
        try:
            copied: nn.Module = type(self.module).__deepcopy__(self.module, memo)  # type: ignore[attr-defined]
        finally:
            own.update(protections)
        copied.__dict__.update(_without_hooks(copied.__dict__))
        return copied


def _strip(attributes: dict[str, Any]) -> dict[str, Any]:
    """Remove the copy protection from a module's attributes, and return it."""
    return {name: attributes.pop(name) for name in (_PROTECTED, "__deepcopy__") if name in attributes}


def _without_hooks(attributes: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in attributes.items() if name not in (_PROTECTED, "__deepcopy__")}
    for name, beside in _HOOK_STORES.items():
        hooks = kept.get(name)
        if hooks:
            own = {key for key, hook in hooks.items() if isinstance(hook, _Hook) or hook is _do_nothing}
            kept[name] = type(hooks)((key, hook) for key, hook in hooks.items() if key not in own)
            for extra in beside:
                marks = kept.get(extra)
                if marks:
                    kept[extra] = type(marks)((key, mark) for key, mark in marks.items() if key not in own)
    return kept

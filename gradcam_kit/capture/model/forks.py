"""Let one thread at a time change models, and restore the models in processes that other threads fork meanwhile."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

_lock = threading.RLock()


def turn() -> AbstractContextManager[bool]:
    """Return the lock that is held while a model is changed."""
    return _lock


def is_scripted(module: nn.Module) -> bool:
    """Whether a module is a TorchScript module, which does not accept hooks."""
    return isinstance(module, torch.jit.ScriptModule)


@contextmanager
def hooks_as_they_are(modules: list[nn.Module]) -> Iterator[None]:
    """Remove hooks added in the block if it ends in a forked process, where the thread that added them is gone."""
    process = os.getpid()
    stores: list[dict[int, Any]] = [
        store
        for module in modules
        if not is_scripted(module)
        for store in (module._forward_hooks, module._forward_pre_hooks)
    ]
    known = [{*store} for store in stores]
    try:
        yield
    finally:
        if os.getpid() != process:
            for store, keys in zip(stores, known, strict=True):
                for key in [key for key in store if key not in keys]:
                    del store[key]


_changes: dict[int, list[ExitStack]] = {}
"""The current changes of models, by thread."""


@contextmanager
def undone_in_forks() -> Iterator[ExitStack]:
    """Undo changes of models when the block ends, and immediately in processes that other threads fork meanwhile."""
    own = _changes.setdefault(threading.get_ident(), [])
    with ExitStack() as changes:
        own.append(changes)
        try:
            yield changes
        finally:
            changes.close()
            own.remove(changes)
            if not own:
                _changes.pop(threading.get_ident(), None)


def _after_fork() -> None:
    """Clean up in a forked process: undo the changes that were made by threads that do not exist in this process."""
    global _lock
    mine = threading.get_ident()
    for thread in [thread for thread in _changes if thread != mine]:
        for changes in reversed(_changes.pop(thread)):
            with suppress(Exception):  # errors of a GPU, which a forked process cannot use anyway
                changes.close()
    if mine not in _changes:
        _lock = threading.RLock()


def _let_finish() -> None:
    """Wait briefly for daemon threads, because torch aborts a process that exits while such a thread computes."""
    if _lock.acquire(timeout=5):
        _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_let_finish)

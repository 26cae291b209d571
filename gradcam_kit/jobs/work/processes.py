"""Processes that work for a run: how they start, and who hears an interruption."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from gradcam_kit.jobs.sources.reading import silence_decoders


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Keep an interruption from the processes that are started meanwhile, until `init_worker` settles them.

    A terminal sends it to all processes, and those that are still importing would show a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker() -> None:
    """Settle a new process: it leaves interruptions to the one that started it, and ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_decoders()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def interruptions_told(say: Callable[[str], None]) -> Iterator[None]:
    """Tell a person at once that an interruption has arrived, as ending the work takes a moment.

    A request to end (SIGTERM), as schedulers send it, counts as an interruption from the keyboard. A handler of the
    program's own for the keyboard stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        say("interrupted; finishing what is being written")
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

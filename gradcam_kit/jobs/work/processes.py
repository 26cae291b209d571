"""Start worker processes of a run, and decide which process handles an interruption."""

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
    """Block interruptions in processes that are started in the block, until `init_worker` runs in them.

    A terminal sends an interruption to all processes, and processes that are still importing would print a traceback.
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
    """Set up a new process to leave interruptions to its parent, and to end when the parent ends, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_decoders()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def interruptions_told(say: Callable[[str], None]) -> Iterator[None]:
    """Acknowledge an interruption immediately, because ending the work takes a moment.

    SIGTERM, which schedulers send, is handled like an interruption from the keyboard. If the program has its own
    handler of SIGINT, this handler is kept.
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

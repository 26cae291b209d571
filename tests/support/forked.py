"""Work in a forked process: what it changes goes with it, and nothing is imported a second time."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout


def in_fork(work: Callable[[], None]) -> str:
    """Return what `work` prints in a forked process, where warnings are no errors.

    Raises:
        AssertionError: with all that was printed, if `work` raised or the process died.
    """
    with tempfile.TemporaryFile() as printed:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            with open(1, "w", encoding="utf-8", closefd=False) as out, redirect_stdout(out), redirect_stderr(out):
                try:
                    warnings.resetwarnings()
                    work()
                    status = 0
                except BaseException:
                    traceback.print_exc()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    assert status == 0, text[-3000:]
    return text

"""Programs in processes of their own that need not import torch anew, which takes seconds each time.

They are forked off a process that has imported it, and nothing of the package unless asked for, before anything ran.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("gradcam_kit.cli", "gradcam_kit.folder", "gradcam_kit.jobs.results", "gradcam_kit.report", "pandas")
"""To preload for programs that run the command."""
MAIN = "from gradcam_kit.__main__ import main; main()"

_SERVER = """
import importlib, json, os, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    started = os.fork()
    if not started:
        break
    print(started, flush=True)
else:
    os._exit(0)
os.setsid()
os.chdir(asked["folder"])
os.environ.clear()
os.environ.update(asked["environment"])
for number, name in enumerate((os.devnull, asked["output"], asked["errors"])):
    os.dup2(os.open(name, os.O_RDWR), number)
sys.stdin = open(0, closefd=False)  # nothing of what this process has read ahead
sys.argv = ["-c", *asked["arguments"]]
sys.path[:0] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


class Program:
    """A program that runs, as leader of a process group, with what it has printed so far in files."""

    def __init__(self, code: str, arguments: Sequence[str], environment: Mapping[str, str], preload: Sequence[str]):
        self._server = _server(tuple(preload))
        self._output, self._errors = (tempfile.NamedTemporaryFile(mode="r") for _ in range(2))  # noqa: SIM115
        self.pid = int(
            self._asked(
                code=code,
                arguments=list(arguments),
                environment=dict(environment),
                folder=os.getcwd(),
                output=self._output.name,
                errors=self._errors.name,
            )
        )
        self.returncode: int | None = None

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end, and return what it printed; after the timeout it is killed."""
        timer = Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        timer.start()
        self.returncode = int(self._asked(wait=self.pid))
        timer.cancel()
        with self._output as output, self._errors as errors:
            return output.read(), errors.read()

    def _asked(self, **question: object) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()


def start(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None, preload: Sequence[str] = ("torch",)
) -> Program:
    """Start `python -c CODE ARGUMENTS` in the current folder, where the modules in `preload` are imported already.

    Args:
        environment: all variables of the process; None = those of this one.
    """
    return Program(
        code, arguments, {"PYTHONPATH": str(ROOT), **(os.environ if environment is None else environment)}, preload
    )


def run(
    code: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    preload: Sequence[str] = ("torch",),
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, as `subprocess.run` does with `capture_output=True`."""
    program = start(code, *arguments, environment=environment, preload=preload)
    output, errors = program.communicate()
    assert not check or program.returncode == 0, errors
    return subprocess.CompletedProcess([code, *arguments], program.returncode or 0, output, errors)


def run_two_ranks(code: str, folder: Path, *, preload: Sequence[str] = ()) -> list[str]:
    """Run a program as two ranks to their end, and return what each printed.

    The arguments of each are its rank and the path of the store by which both find each other.
    """
    ranks = [
        start(code, str(rank), str(folder / "store"), preload=("torch", "torch.distributed", *preload))
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], [errors for _, errors in printed]
    return [output for output, _ in printed]


@cache
def _server(preload: tuple[str, ...]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SERVER, *preload]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    with server:  # closes its input, at which it ends, and waits
        pass

"""Common parts of all commands: thread limits, one-line errors, and lists of missing arguments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from gradcam_kit.cli.printing import say
from gradcam_kit.errors import GradCamKitError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that set the number of threads."""


class Commands(TyperGroup):
    """The commands of the program; the group ends an invalid request with one line and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except GradCamKitError as error:
            say("gradcam-kit: " + " ".join(str(error).split()))  # print one line, whatever the user's code raises
            raise typer.Exit(2) from None
        except SystemExit as error:  # our commands raise typer.Exit, so this is the user's code
            code = "" if error.code is None else repr(error.code)
            say(
                f"gradcam-kit: the code of the model or a method called sys.exit({code}); the command ends with "
                "exit status 2 instead"
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("gradcam-kit: interrupted")
            raise typer.Exit(130) from None

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, with flags that the help shows without a type."""
        return _without_type_of_flags(super().get_params(ctx))


class Command(TyperCommand):
    """A command that lists all missing arguments, and uses no more threads than the process has cores."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, with flags that the help shows without a type."""
        return _without_type_of_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            missing = self._missing(ctx, given) if _is_missing(error) else []
            if len(missing) < 2:
                raise
            raise _AllMissing(f"Missing {', '.join(missing[:-1])} and {missing[-1]}.", ctx=ctx) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with command_threads():
            return super().invoke(ctx)

    def _missing(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, _ = self.make_parser(ctx).parse_args(args=args)
        missing = [parameter for parameter in self.get_params(ctx) if _is_absent(parameter, ctx, values)]
        return [
            max(one.opts, key=len) if one.param_type_name == "option" else (one.metavar or one.name) for one in missing
        ]


def _without_type_of_flags(parameters: list[Any]) -> list[Any]:
    """Let the help show flags without a type, because `--open <bool>` would look as if the flag needed a value."""
    for one in parameters:
        if getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
    return parameters


class _AllMissing(typer.BadParameter):
    """An error that names several missing arguments."""

    def format_message(self) -> str:
        """Return the message, which is one line."""
        return self.message


def _is_absent(parameter: Any, ctx: Any, values: Any) -> bool:
    """Whether a required parameter is not among the values."""
    try:
        parameter.handle_parse_result(ctx, values, [])
    except typer.BadParameter as error:
        return _is_missing(error)
    return False


def _is_missing(error: Exception) -> bool:
    return type(error).__name__ == "MissingParameter"  # exceptions of click, or of the copy of click inside typer


@contextmanager
def command_threads() -> Iterator[None]:
    """Limit torch's threads to the cores of this process: its affinity, and the CPU quota of its container.

    A number that the user sets by OMP_NUM_THREADS or MKL_NUM_THREADS is kept. Only commands limit threads; the library
    does not change the threads of a process.
    """
    if any(os.environ.get(name) for name in _THREADS):
        yield
        return
    import torch

    from gradcam_kit.jobs.cores import usable_cores

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, usable_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)

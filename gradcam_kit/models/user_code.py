"""Import functions and classes from the user's own modules by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradcam_kit.errors import InputError, UnknownNameError, did_you_mean, raise_interruption
from gradcam_kit.models.zoo import first_line

_named: set[str] = set()
"""Specifications `module:name` that this program has imported at the user's request."""


def imported(spec: str, what: str) -> Any:
    """Import the callable of `package.module:name`; modules in the working directory are found, as with `python -m`.

    Args:
        spec: module and name, joined by a colon.
        what: kind of the callable, for messages.

    Raises:
        ModuleNotFoundError: the module does not exist.
        UnknownNameError: the module has no such name.
        InputError: the named object is not callable, or importing the module fails.
    """
    path, _, attribute = spec.partition(":")
    with working_directory_on_path():
        try:
            module = importlib.import_module(path)
            found = getattr(module, attribute, None)  # a module may run its own code for attribute access
        except ModuleNotFoundError as error:
            if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
                raise
            raise InputError(f"importing {path!r} failed: {first_line(error)}") from error
        except SystemExit as error:
            raise InputError(
                f"importing {path!r} {exit_said(error)}; guard the main program with if __name__ == '__main__'"
            ) from error
        except Exception as error:
            raise_interruption(error)
            raise InputError(f"importing {path!r} failed: {type(error).__name__}: {first_line(error)}") from error
    if found is None:
        hint = did_you_mean(attribute, (name for name, value in vars(module).items() if callable(value)))
        raise UnknownNameError(f"module {path!r} has no {what} {attribute!r}{hint}")
    if not callable(found):
        raise InputError(f"{spec} is a {type(found).__name__}, not a {what}; expected a callable")
    _named.add(spec)
    return found


def was_named(spec: str) -> bool:
    """Whether this program has already imported this function or class, so that no new code would run."""
    return spec in _named and spec.partition(":")[0] in sys.modules


def exit_said(error: SystemExit) -> str:
    """Describe how a user's code tried to end the program."""
    return f"called sys.exit({'' if error.code is None else repr(error.code)})"


@contextmanager
def working_directory_on_path() -> Iterator[None]:
    """Let Python find modules in the working directory, as with `python -m`."""
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have edited sys.path
            sys.path.remove(directory)

"""How everything public is called: the signatures, as lines of text that tests/signatures/ keeps.

After a change that is meant, `python -m tests.support.signatures` writes these files anew.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from gradcam_kit.methods import METHODS

FOLDER = Path(__file__).parent.parent / "signatures"
METHOD_CLASSES = "METHODS"
MODULES = (
    "gradcam_kit",
    "gradcam_kit.targets",
    "gradcam_kit.models",
    "gradcam_kit.metrics",
    "gradcam_kit.render",
    "gradcam_kit.transforms",
    "gradcam_kit.capture",
    "gradcam_kit.jobs",
    "gradcam_kit.methods.base",
    METHOD_CLASSES,
)


def lines(module: str) -> list[str]:
    """One line for each public callable of a module, and one for each public method of its classes."""
    if module == METHOD_CLASSES:
        own = {cls.__module__: cls for cls in METHODS.values() if cls.__module__.startswith("gradcam_kit.")}
        return sorted(line for cls in own.values() for line in _described(cls.__name__, cls))
    home = importlib.import_module(module)
    names = getattr(home, "__all__", None) or [name for name, one in vars(home).items() if _is_own(home, one)]
    return sorted(line for name in names for line in _described(name, getattr(home, name)) if name[0] != "_")


def _is_own(home: Any, one: Any) -> bool:
    return getattr(one, "__module__", "") == home.__name__


def _described(name: str, one: Any) -> Iterator[str]:
    if not (inspect.isclass(one) or inspect.isfunction(one)) or one.__module__.split(".")[0] != "gradcam_kit":
        return
    if not (inspect.isclass(one) and issubclass(one, Enum | BaseException | dict)):
        yield name + _signature(one)
    if inspect.isclass(one):
        for own, member in vars(one).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function) and not own.startswith("_"):
                yield f"{name}.{own}{_signature(function)}"


def _signature(one: Any) -> str:
    """Names, kinds and defaults, without types; the order of keyword-only parameters means nothing to a caller."""
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_Shown(parameter.default))
        if parameter.default is not parameter.empty
        else parameter.replace(annotation=parameter.empty)
        for parameter in inspect.signature(one).parameters.values()
    ]
    parameters.sort(key=lambda parameter: (parameter.kind, parameter.name * (parameter.kind is parameter.KEYWORD_ONLY)))
    return str(inspect.Signature(parameters))


class _Shown:
    """A default as the same text in every process."""

    def __init__(self, default: Any) -> None:
        self.default = default

    def __repr__(self) -> str:
        return getattr(self.default, "__qualname__", None) or re.sub(r" at 0x\w+", "", repr(self.default))


if __name__ == "__main__":
    for module in MODULES:
        (FOLDER / f"{module}.txt").write_text("\n".join([*lines(module), ""]))

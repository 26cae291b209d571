"""Former public names, kept for one release."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

_C = TypeVar("_C", bound=Callable[..., Any])


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that resolves former names, with a DeprecationWarning that gives the new name.

    Args:
        module: `__name__` of the module.
        names: former name -> new name.

    Example:
        >>> __getattr__ = former_names("gradcam_kit.metrics", {"Case": "MetricInput"})
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of_former_name(f"{module}.{name}", names[name])
        return getattr(sys.modules[module], names[name])

    return attribute


def former_arguments(**names: str) -> Callable[[_C], _C]:
    """Return a decorator that accepts former keywords of a function or class, with a DeprecationWarning.

    The signature shows only the new names. A call with both names raises a TypeError, like a repeated keyword.

    Args:
        **names: former name = new name.

    Example:
        >>> @former_arguments(controls="baselines")
        ... def compare(*, baselines=True):
        ...     return baselines
    """

    def decorated(function: _C) -> _C:
        if isinstance(function, type):
            # Use getattr and setattr, because type checkers allow neither reading nor replacing `__init__`.
            setattr(function, "__init__", decorated(getattr(function, "__init__")))  # noqa: B009, B010
            return function
        title = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def renamed(*args: Any, **options: Any) -> Any:
            for former in names.keys() & options.keys():
                name = names[former]
                if name in options:
                    raise TypeError(f"{title}() got {former!r} and its new name {name!r}; pass only {name!r}")
                warn_of_former_name(f"the argument {former!r} of {title}()", repr(name))
                options[name] = options.pop(former)
            return function(*args, **options)

        return renamed  # type: ignore[return-value]

    return decorated


def warn_of_former_name(former: str, name: str) -> None:
    """Warn the caller's caller that a name has changed."""
    warnings.warn(f"{former} is now called {name}", DeprecationWarning, stacklevel=3)

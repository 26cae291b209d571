"""Former public names, kept for one release."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that answers for former names, with a DeprecationWarning that gives the new one.

    Args:
        module: `__name__` of the module.
        names: former name -> name.

    Example:
        >>> __getattr__ = former_names("gradcam_kit.metrics", {"Case": "MetricInput"})
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return attribute

"""Names of the tensors in a module's output: `layer`, `layer[0]`, `layer.logits`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def named_leaves(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Return the leaves of a module's output, tensors and others, with their names.

    Example:
        >>> [name for name, _ in named_leaves("lstm", (torch.ones(1), (torch.ones(1), torch.ones(1))))]
        ['lstm[0]', 'lstm[1][0]', 'lstm[1][1]']
    """
    # Most outputs are a single tensor, and a generator for each would slow down the hooks of every layer.
    return ((name, value),) if isinstance(value, Tensor) else _inner_leaves(name, value)


def _inner_leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, own in value.items():
            yield from named_leaves(f"{name}.{key}", own)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key, own in zip(value._fields, value, strict=True):
            yield from named_leaves(f"{name}.{key}", own)
    elif isinstance(value, tuple | list):
        for place, own in enumerate(value):
            yield from named_leaves(f"{name}[{place}]", own)
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from named_leaves(f"{name}.{one.name}", getattr(value, one.name))
    else:
        yield name, value

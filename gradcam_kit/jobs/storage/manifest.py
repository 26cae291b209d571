"""Two runs are the same if everything that determines their rows is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gradcam_kit.errors import OptionError


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], root: str) -> None:
    """Refuse to mix the rows of two different runs.

    Raises:
        OptionError: the first field that differs.
    """
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file
    for name, old, new in _differences(before, now):
        if name.split(".")[0] != "about":
            raise OptionError(
                f"{root!r} holds a run with different {name}: {_short(old)} there, {_short(new)} now; choose another "
                "folder, ask for the same, or replace it: --overwrite"
            )


def _differences(before: Any, now: Any, name: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if name and before.keys() != now.keys():
            yield name, ", ".join(before), ", ".join(now)
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif before != now:
        yield name, before, now


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"

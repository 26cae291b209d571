"""Check whether `run.json` is the manifest of a run, and whether two runs are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from gradcam_kit.errors import GradCamKitError, InputError, OptionError
from gradcam_kit.jobs.request import PRECISIONS, Targets
from gradcam_kit.types import GradientRule

FORMAT = 2
_NORMALIZATIONS = ("minmax", "max", "none")


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], root: str) -> None:
    """Refuse to mix the rows of two different runs.

    Raises:
        OptionError: fields differ; the message names all of them.
    """
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file
    unsaid = {"scores": "softmax", "gradient_rule": "exact"}  # fields that earlier versions did not write
    before, now = {**before, **unsaid, **before}, {**now, **unsaid, **now}
    differences = [
        f"{name}: {_short(old)} before, {_short(new)} now"
        for name, old, new in _differences(before, now)
        if name.split(".")[0] != "about"
    ]
    if differences:
        raise OptionError(
            f"{root!r} holds a run with different {'; '.join(differences)}; choose another folder, use the "
            "same settings, or replace it with --overwrite"
        )


def check_readable(manifest: Mapping[str, Any], place: str) -> None:
    """Refuse a `run.json` that is not the manifest of a run, because none of its fields can be trusted.

    Args:
        manifest: the content of `run.json`.
        place: the path of `run.json`, for messages.

    Raises:
        InputError: the format is unknown, or a field has a value that no run writes; the message names the field.
    """
    if manifest.get("format") != FORMAT:
        raise InputError(f"{place} has the format {_short(manifest.get('format'))}; expected {FORMAT}")
    if "metrics" in manifest and manifest["metrics"] is None:
        raise InputError(f"{place} is not the manifest of a run: metrics is null; expected an object")
    for name, (holds, expected) in _FIELDS.items():
        value: Any = manifest
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not holds(value):
            raise InputError(f"{place} is not the manifest of a run: {name} is {_short(value)}; expected {expected}")


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of each differing field; for objects of objects, compare the keys first."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        if before != now:
            yield name, before, now
        return
    keys = [*before, *(key for key in now if key not in before)]
    if name and before.keys() != now.keys() and any(isinstance(one, Mapping) for one in before.values()):
        yield name, ", ".join(before), ", ".join(now)
        keys = [key for key in before if key in now]
    for key in keys:
        yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_file_name(text: Any) -> bool:
    """Whether a method's name is safe as a part of a file name."""
    return isinstance(text, str) and text not in ("", ".", "..") and not {"/", "\\", "\0"} & {*text}


def _is_methods(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_file_name(name) and isinstance(one, Mapping) and one.get("normalize") in _NORMALIZATIONS
        for name, one in value.items()
    )


def _is_targets(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Targets.parse(value))
    except GradCamKitError:
        return False


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pictures": (lambda value: _is_count(value, 1), "an integer of at least 1"),
    "shard_size": (lambda value: _is_count(value, 1), "an integer of at least 1"),
    "overlays": (lambda value: value is None or _is_count(value), "an integer of at least 0, or null"),
    "model": (lambda value: isinstance(value, str), "a string"),
    "weights": (lambda value: isinstance(value, str), "a string"),
    "weights_sha256": (lambda value: isinstance(value, str), "a string"),
    "transform": (lambda value: isinstance(value, Mapping), "an object"),
    "class_names": (lambda value: value is None or _is_texts(value), "a list of strings or null"),
    "methods": (_is_methods, "an object with the settings of each method, whose names are valid in file names"),
    "layers": (
        lambda value: isinstance(value, Mapping) and all(map(_is_texts, value.values())),
        "an object with the layers of each method",
    ),
    "metrics": (
        lambda value: (
            value is None or (isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()))
        ),
        "an object with the settings of each metric",
    ),
    "targets": (_is_targets, "predicted, label, an index, top:K or the name of a class"),
    "gradient_rule": (lambda value: value in (None, *get_args(GradientRule)), "exact or balanced"),
    "dtype": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "compile": (lambda value: isinstance(value, bool), "true or false"),
    "about": (lambda value: isinstance(value, Mapping), "an object"),
    "about.root": (lambda value: isinstance(value, str) and "\0" not in value, "a folder"),
    "about.source": (lambda value: isinstance(value, str), "a string"),
}
"""Fields that are read, the condition of each, and its description for messages."""

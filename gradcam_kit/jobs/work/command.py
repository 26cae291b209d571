"""The command line of a run, which its report shows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from gradcam_kit.jobs.request import RunRequest

_REPEATED = {"methods": "--method", "layers": "--layer", "metrics": "--metric"}
_NOT_OF_THE_RESULT = (
    "source", "model", "out", "part", "overwrite", "retry_failed", "fail_fast", "report", "processes", "workers",
    "device", "engine", "batch_size",
)  # fmt: skip


def command_of(request: RunRequest) -> str | None:
    """Return a command line that gives the same rows; None if model, transform or class names are Python objects.

    The folder appears as DIR, so that runs with the same rows have the same `run.json`, wherever they are.

    Example:
        >>> command_of(RunRequest("demo", source="my pictures", out="run", methods=("layer-cam",)))
        "gradcam-kit run 'my pictures' --model demo --out DIR --method layer-cam"
    """
    if not isinstance(request.model, str) or request.transform is not None or isinstance(request.class_names, tuple):
        return None
    parts = ["gradcam-kit", "run", request.source, "--model", request.model, "--out", "DIR", *_options(request)]
    return shlex.join(parts)


def _options(request: RunRequest) -> Iterator[str]:
    """Yield the options that affect the rows or the report and whose values are not the defaults."""
    for field in fields(request):
        name, value = field.name, getattr(request, field.name)
        if name in _NOT_OF_THE_RESULT or value == field.default:
            continue
        if name in _REPEATED:
            for one in value:
                yield from (_REPEATED[name], one)
        elif value is True:
            yield f"--{name}"
        else:
            yield from ("--" + name.replace("_", "-"), _text(name, value))


def _text(name: str, value: Any) -> str:
    if name == "overlays" and value == 0:
        return "none"
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else str(Path(value))
        if name == "checkpoint"
        else str(value)
    )

"""Rebuild the request of an existing run from its `run.json`, to set up the same model and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcam_kit.errors import InputError, OptionError
from gradcam_kit.jobs.request import RunRequest
from gradcam_kit.jobs.results import Run
from gradcam_kit.models import is_code
from gradcam_kit.models.user_code import was_named

if TYPE_CHECKING:
    from gradcam_kit.jobs.evaluate import EvaluateRequest


def request_of(run: Run, request: EvaluateRequest) -> RunRequest:
    """Return the request that rebuilds the model and the methods of a run.

    A `run.json` may come from somebody else, so Python modules that it names are not imported. The caller must name a
    factory or a class again, unless this process has already imported it.

    Raises:
        OptionError: the model or a method comes from a Python module, and the caller did not name it again.
        InputError: `run.json` does not contain a valid request.
    """
    manifest = run.manifest
    asked = manifest["about"].get("request", {"model": manifest["model"], "methods": list(manifest["methods"])})
    place = run.store.place("run.json")
    for name, (kinds, expected) in _FIELDS.items():
        if not isinstance(asked, Mapping) or not _is_of(asked.get(name), kinds):
            raise InputError(f"{place} is not the manifest of a run: about.request.{name} is not {expected}")
    model = request.model if request.model is not None else asked["model"]
    if model is None:
        raise OptionError(
            f"the run in {request.directory!r} has a module as its model ({manifest['model']}), which the "
            "command line cannot rebuild; in Python, call evaluate(EvaluateRequest(directory, model=module)) of "
            "gradcam_kit.jobs"
        )
    if request.model is None and isinstance(model, str) and is_code(model) and not was_named(model):
        raise OptionError(
            f"{place} names the model {model!r}, a Python module. For safety, modules named in a run folder "
            f"are not imported; if you trust this module, pass --model {model}"
        )
    names, checkpoint = asked.get("class_names"), request.checkpoint or asked.get("checkpoint")
    return RunRequest(
        model=model,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        weights=asked.get("weights"),
        image_size=asked.get("image_size"),
        mean=_numbers(asked.get("mean")),
        std=_numbers(asked.get("std")),
        class_names=None if names is None else tuple(names),
        methods=_methods(asked["methods"], request.methods, place),
        transform=request.transform,
        out=request.directory,
        device=request.device,
        dtype=manifest["dtype"],
        scores=manifest.get("scores"),
        gradient_rule=manifest.get("gradient_rule") or "exact",
        compile=manifest["compile"],
        batch_size=request.batch_size,
        workers=request.workers,
    )


def _methods(asked: Sequence[str], named: Sequence[str], place: str) -> tuple[str, ...]:
    """Return the methods of a run; user-defined classes must have been named again.

    Raises:
        OptionError: a user-defined class was not named again, or the run does not have a named method.
    """
    for name in named:
        if name not in asked:
            raise OptionError(f"the run has no method {name!r}; it has {', '.join(asked)}")
    for name in asked:
        if ":" in name and name not in named and not was_named(name):
            raise OptionError(
                f"{place} names the method {name!r}, a Python class. For safety, classes named in a run "
                f"folder are not imported; if you trust this class, pass --method {name}"
            )
    return tuple(asked)


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value, or each value of a list, has one of the given types."""
    if isinstance(value, list):
        return list in kinds and all(isinstance(one, kinds) and not isinstance(one, list) for one in value)
    return isinstance(value, kinds) and not isinstance(value, bool) and not (list in kinds and isinstance(value, str))


_NONE = type(None)
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "model": ((str, _NONE), "a string or null"),
    "checkpoint": ((str, _NONE), "a string or null"),
    "weights": ((str, _NONE), "a string or null"),
    "image_size": ((int, _NONE), "an integer or null"),
    "mean": ((list, int, float, _NONE), "a list of numbers or null"),
    "std": ((list, int, float, _NONE), "a list of numbers or null"),
    "class_names": ((list, str, _NONE), "a list of strings or null"),
    "methods": ((list, str), "a list of strings"),
}
"""The accepted types of each field, and their description for messages."""

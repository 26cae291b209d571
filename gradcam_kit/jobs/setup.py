"""From what a person asks to a loaded model with its methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from gradcam_kit.capture import check_model
from gradcam_kit.errors import InputError, OptionError, UnknownNameError, did_you_mean
from gradcam_kit.jobs.decode import Decoded, decode
from gradcam_kit.jobs.explainer import Explainer
from gradcam_kit.jobs.index import Entry
from gradcam_kit.jobs.request import ModelRequest, Targets
from gradcam_kit.methods import METHODS
from gradcam_kit.models import load_model
from gradcam_kit.types import Evidence


def load_explainer(request: ModelRequest, console: Console | None = None) -> Explainer:
    """Load the model onto its device; methods are added by `with_methods`.

    Args:
        request: which model, and what of it.
        console: where notes about the model are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is wrong.
    """
    device = _usable(request.device)
    loaded = load_model(
        request.model,
        checkpoint=request.checkpoint,
        weights=request.weights,
        image_size=request.image_size,
        mean=request.mean,
        std=request.std,
        class_names=None if request.class_names is None else _lines(request.class_names),
    )
    for text in loaded.notes:
        note(console, text)
    targets = Targets.parse(request.targets)
    if targets.kind == "label" and loaded.class_names is None:
        raise OptionError("targets=label needs class names, and the model has none; give a file with --class-names")
    dtype: torch.dtype = getattr(torch, request.dtype)
    return Explainer(loaded, check_model(loaded.model.to(device, dtype)), (), targets, device, dtype)


def make_explainer(
    request: ModelRequest, methods: Iterable[str], entries: Iterable[Entry], console: Console | None = None
) -> Explainer:
    """Load the model and set up the methods; the first picture that can be read decides on automatic layers.

    Args:
        request: which model, and what of it.
        methods: names in `METHODS`; none = all that need a single pass and suit the model.
        entries: the pictures that will be explained.
        console: where notes are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is wrong.
    """
    methods = list(dict.fromkeys(methods))
    for method in methods:
        if method not in METHODS:
            hint = did_you_mean(method, METHODS)
            raise UnknownNameError(f"there is no method {method!r}{hint}; see: gradcam-kit methods")
    explainer = load_explainer(request, console)
    found = (decode(entry, explainer.loaded.transform) for entry in entries)
    first = next((one for one in found if isinstance(one, Decoded)), None)
    images = None if first is None else explainer.images([first.image])
    explainer = explainer.with_methods(methods or _single_pass_methods(), request.layers, images, request.batch_size)
    if methods or first is None:
        return explainer
    fitting = [cam for cam in explainer.cams if explainer.suits(cam, first)]
    left_out = [cam.name for cam in explainer.cams if cam not in fitting]
    if left_out and fitting:
        note(console, f"left out, because they do not suit the model or layer: {', '.join(left_out)}")
    return replace(explainer, cams=tuple(fitting) or explainer.cams)


def _single_pass_methods() -> list[str]:
    again = Evidence.RESCORE | Evidence.REPLAY | Evidence.PROBE
    return [name for name, method in METHODS.items() if not method.needs & again]


def note(console: Console | None, text: str) -> None:
    """Tell a person what they should know."""
    if console is not None:
        console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


def _usable(device: str | None) -> torch.device:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class names in {str(path)!r} cannot be read: {error}") from error

"""Generate the code that reproduces a map of the app, ready to copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradcam_kit.app.views import AppModel, NamedTarget, View
from gradcam_kit.methods import BaseCAM
from gradcam_kit.targets import DetectionTarget

_LOADED_BY = ("checkpoint", "weights", "image_size", "mean", "std")


def recipe(
    model: AppModel,
    view: View,
    method: type[BaseCAM],
    layer: str,
    target: NamedTarget,
    options: Mapping[str, Any],
    alpha: float,
) -> str:
    """Return a script that makes the same map and its overlay.

    Args:
        model: the model of the app.
        view: view of the picture.
        method: the class of the method.
        layer: name of the target layer; "" = the method chooses.
        target: the explained target.
        options: options of the method.
        alpha: opacity of the overlay.
    """
    is_public = method.__module__.startswith("gradcam_kit.methods.")
    names = {"load_model"} | ({method.__name__} if is_public else set())
    names |= {"read_picture"} if "read_picture" in view.source.expression else set()
    imports = [f"from gradcam_kit import {', '.join(sorted(names))}"]
    if not is_public:
        imports.append(f"from {method.__module__} import {method.__name__}")
    if isinstance(target.target, DetectionTarget):
        imports.append("from gradcam_kit.targets import DetectionTarget")
    loading, more = _loading(model)
    imports += [line for line in (view.source.imports, more) if line]
    on_device = "" if model.device == torch.device("cpu") else f".to({str(model.device)!r})"
    arguments = [
        "loaded.model",
        *([repr(layer)] if layer else []),
        *(f"{key}={value!r}" for key, value in options.items()),
    ]
    lines = [
        *imports,
        "",
        loading,
        *([f"loaded.model{on_device}"] if on_device else []),
        f"picture = {view.source.expression}",
        f"images = loaded.transform(picture)[None]{on_device}",
        f"cam = {method.__name__}({', '.join(arguments)})",
        f"target = {_target(target)}",
        "explanation = cam.explain(images, target)",
        f"overlay = explanation.overlay(picture, transform=loaded.transform, alpha={alpha:g})",
        f"overlay.save({f'{method.name}.png'!r})",
        "print(cam.check(images, target))",
    ]
    return "\n".join(lines) + "\n"


def _loading(model: AppModel) -> tuple[str, str]:
    """Return the line that loads the model, and the import that this line needs."""
    request = model.request
    if isinstance(request.model, nn.Module):
        return "loaded = from_module(model)  # the model that the app was given", (
            "from gradcam_kit.models import from_module"
        )
    values = {key: getattr(request, key) for key in _LOADED_BY if getattr(request, key) is not None}
    arguments = [repr(request.model)]
    arguments += [f"{key}={(str(value) if key == 'checkpoint' else value)!r}" for key, value in values.items()]
    if request.class_names is None:
        return f"loaded = load_model({', '.join(arguments)})", ""
    if isinstance(request.class_names, tuple):
        names, needed = repr(request.class_names), ""
    else:
        names = f"Path({str(request.class_names)!r}).read_text().splitlines()"
        needed = "from pathlib import Path"
    return f"loaded = load_model({', '.join([*arguments, f'class_names={names}'])})", needed


def _target(target: NamedTarget) -> str:
    """Return code for the target, with its name in a one-line comment."""
    comment = "".join(sign if sign.isprintable() else " " for sign in target.name)
    if isinstance(target.target, DetectionTarget):
        labels = target.target.labels
        return f"DetectionTarget({target.target.boxes.tolist()}, {labels!r})  # {comment}"
    return f"{target.target}  # {comment}"

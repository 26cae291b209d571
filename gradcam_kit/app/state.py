"""Compute maps from a picture and the user's choices, each with its cost, check and code."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.app.recipes import recipe
from gradcam_kit.app.views import AppModel, NamedTarget, View, layers_for
from gradcam_kit.capture import choose_among
from gradcam_kit.errors import (
    ClassIndexError,
    GradCamKitError,
    exits_refused,
    is_out_of_memory,
    raise_interruption,
)
from gradcam_kit.jobs.request import one_line
from gradcam_kit.meter import Meter
from gradcam_kit.methods import METHODS, BaseCAM, single_pass_methods
from gradcam_kit.methods.engine.showing import one_map
from gradcam_kit.pixels.pictures import RGB
from gradcam_kit.render import overlay

RULES = ("exact", "balanced")
"""Gradient rules, for methods that have the option `gradient_rule`."""

USUAL = ("grad-cam", "layer-cam", "eigen-cam")
_LONGEST = 600  # maximum length of a displayed error


@dataclass(frozen=True)
class Choice:
    """The user's choices.

    Attributes:
        target: the index of a class, or of a box for a detector.
        methods: names in `METHODS`.
        layer: name of the target layer; "" leaves the choice to each method.
        gradient_rule: "" = the default of the method; ignored by methods without the option.
    """

    target: int
    methods: tuple[str, ...] = USUAL
    layer: str = ""
    gradient_rule: str = ""


@dataclass(frozen=True, eq=False)
class MethodMap:
    """One map, or the reason why there is none.

    Attributes:
        method: name of the method.
        target: the explained target.
        cam: the method at its layers; None if the method failed.
        heatmap: heatmap `(h, w)` in [0, 1]; None if the method failed.
        layers: names of the target layers.
        cost: seconds, passes and memory as text.
        is_empty: whether there is no positive evidence.
        error: the error on one line; "" without an error.
        code: function from the opacity to the script that makes this map; None without a map.
        check: the result of `cam.check` as text, or why the check failed; "" before the check ran.
    """

    method: str
    target: NamedTarget
    cam: BaseCAM | None = None
    heatmap: Float[Tensor, "h w"] | None = None
    layers: tuple[str, ...] = ()
    cost: str = ""
    is_empty: bool = False
    error: str = ""
    code: Callable[[float], str] | None = None
    check: str = ""


def method_choices() -> list[tuple[str, str]]:
    """Return labels and values of all methods, single-pass methods first; labels contain the cost."""
    quick = single_pass_methods()
    ordered = [*quick, *(name for name in METHODS if name not in quick)]
    return [(f"{name}  ({METHODS[name].cost or 'F'})", name) for name in ordered]


def has_gradient_rules() -> bool:
    """Whether any method has the option `gradient_rule`."""
    return any(_takes_rule(method) for method in METHODS.values())


def chosen_target(model: AppModel, view: View, place: int) -> NamedTarget:
    """Return the target with this index, a box of a detector or a class of a classifier.

    Raises:
        ClassIndexError: the class or the box does not exist.
    """
    count = len(view.targets) if view.is_detector else view.class_count
    if not 0 <= place < count:
        raise ClassIndexError(
            f"there is no {'box' if view.is_detector else 'class'} {place} (total: {count}, counted from 0)"
        )
    if view.is_detector:
        return view.targets[place]
    known = {one.target: one for one in view.targets}
    return known.get(place) or NamedTarget(model.class_name(place), float("nan"), place)


def explain(model: AppModel, view: View, choice: Choice) -> Iterator[MethodMap]:
    """Explain the picture by one method after another; a failing method gives a map with an error.

    Raises:
        ClassIndexError: the class or the box does not exist.
    """
    target = chosen_target(model, view, choice.target)
    for name in choice.methods:
        yield _attempted(model, view, choice, name, target)


def _attempted(model: AppModel, view: View, choice: Choice, name: str, target: NamedTarget) -> MethodMap:
    try:
        with exits_refused():
            return _explained(model, view, choice, name, target)
    except Exception as error:
        return MethodMap(name, target, error=said(error))


def _explained(model: AppModel, view: View, choice: Choice, name: str, target: NamedTarget) -> MethodMap:
    method = METHODS[name]
    options: dict[str, Any] = {}
    if choice.gradient_rule and _takes_rule(method):
        options["gradient_rule"] = choice.gradient_rule
    layer = "" if method.layer_choice.is_fixed else choice.layer
    cam = method(model.model, layer or _automatic(model, view, method, target), **options)
    with Meter(model.device) as meter:
        explanation = cam.explain(view.images, target.target)
        heatmap = one_map(explanation, 0, 0)
        cost = meter.lap()
    memory = f"{cost.peak_bytes / 1e6:.0f}" if cost.peak_bytes >= 1e6 else "< 1"
    passes = f", {cost.flops / view.flops:.1f} forward passes" if view.flops else ""
    return MethodMap(
        name,
        target,
        cam,
        heatmap,
        explanation.layers,
        f"{cost.seconds:.2f} s{passes}, {memory} MB",
        bool(explanation.is_empty.any()),
        code=partial(recipe, model, view, method, layer, target, options),
    )


def _automatic(model: AppModel, view: View, method: type[BaseCAM], target: NamedTarget) -> list[str] | None:
    """Return the layers that the method would choose, so that looking for them is not part of its cost."""
    if method.layer_choice.is_fixed:
        return None
    size = tuple(view.images.shape[2:])
    found = choose_among(lambda: list(layers_for(model, view, target.target)), model.model, size, method.layer_choice)
    return list(found)


def check(view: View, found: MethodMap) -> MethodMap:
    """Run `cam.check` for a map, which costs about six times as much as the map."""
    if found.cam is None:
        return found
    try:
        with exits_refused():
            return replace(found, check=str(found.cam.check(view.images, found.target.target)))
    except Exception as error:
        return replace(found, check=f"the check failed: {said(error)}")


def paint(view: View, found: MethodMap, alpha: float) -> RGB | None:
    """Return the picture with the heatmap and, for a detection, the explained box; None if the method failed."""
    if found.heatmap is None:
        return None
    return overlay(view.shown, found.heatmap, box=view.seen, outlines=found.target.box, alpha=alpha)


def summary(found: MethodMap) -> str:
    """Return the caption of a map as Markdown: layer, cost, and remarks."""
    if found.error:
        return f"**{found.method} failed.** {escaped(found.error)}"
    layers = ", ".join(f"`{name}`" for name in found.layers[:3]) + (" ..." if len(found.layers) > 3 else "")
    lines = [f"{layers or 'no layer'} · {found.cost}"]
    if found.is_empty:
        lines.append("**No positive evidence:** the map is empty.")
    if found.check:
        first, *rest = found.check.splitlines()
        lines.append(f"**{escaped(first)}**" + "".join(f"\n- {escaped(line.strip(' !'))}" for line in rest))
    return "\n\n".join(lines)


def escaped(text: str) -> str:
    """Escape a text so that Markdown and HTML show it literally, whatever characters it contains."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return "".join(f"&#{ord(sign)};" if sign in "<>&\"'`*_[]()#|~$\\!" else sign for sign in plain)


def said(error: Exception) -> str:
    """Return an error on one line, as the page shows it, and free the tensors that its traceback holds.

    Raises:
        BaseException: the exception of a signal handler.
    """
    raise_interruption(error)
    traceback.clear_frames(error.__traceback__)
    text = one_line(error)
    if is_out_of_memory(error):
        text = f"out of memory: {text}"
    elif not isinstance(error, GradCamKitError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _takes_rule(method: type[BaseCAM]) -> bool:
    return "gradient_rule" in inspect.signature(method).parameters

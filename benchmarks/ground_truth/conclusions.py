"""The conclusions of docs/where-right.md, each made from the stored numbers that support it.

A sentence that calls a method better uses `Stored.better`, which raises if the paired test does not support it. A run
tests exactly the pairs that sentences use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import fill
from typing import Any

from benchmarks.ground_truth.conclusions_tokens import random_channels, removed, transformers
from benchmarks.ground_truth.shortcut import CORRELATIONS
from benchmarks.ground_truth.stored import Asked, Stored, listed
from benchmarks.ground_truth.uncertainty import Pair

_WIDTH = 125
_SIZES = ("small", "medium", "large")
_EFFECT = "effect of the patch on the margin of the logits"
_SHARE = "share of the map on the patch"
_EARLIER = ("GridPG, layer3", "GridPG, layer2")


def linear_head(s: Stored) -> str:
    """Return the conclusion about Grad-CAM before mean pooling and a linear head."""
    for column in (*_SIZES, "two objects", "GridPG", "demo", "demo, GridPG"):
        for other in ("hires-cam", "xgrad-cam", "cam"):
            apart = abs(s.value(column, "grad-cam") - s.value(column, other))
            s.require(apart < 0.01, f"{column}: grad-cam and {other} differ by {apart:.3f}")
    s.require(s.value("two objects", "grad-cam") > 0.9, "two objects: grad-cam does not show the right one")
    two = [s.better("two objects", "grad-cam", other) for other in ("layer-cam", "grad-cam++", "score-cam")]
    grid = [s.better("GridPG", "grad-cam", other) for other in ("layer-cam", "grad-cam++", "score-cam")]
    return (
        "**Before mean pooling and a linear head**, use `GradCAM`; there `HiResCAM`, `XGradCAM` and `CAM` score the "
        f"same to within 0.01. Of two objects it shows the right one ({s.mean('two objects', 'grad-cam')} of what lies "
        f"on both): {two[0]} more than `LayerCAM`, {two[1]} more than `GradCAMPlusPlus` and {two[2]} more than "
        f"`ScoreCAM`. In mosaics of four pictures (GridPG) the differences are {grid[0]}, {grid[1]} and {grid[2]}, in "
        "the same order."
    )


def zero_is_zero(s: Stored) -> str:
    """Return the conclusion about HiResCAM where a linear head follows directly."""
    half = [s.better("blind half", "hires-cam", other) for other in ("grad-cam", "score-cam", "ablation-cam")]
    part = [s.better("DiPart", "hires-cam", other) for other in ("grad-cam", "xgrad-cam", "ablation-cam")]
    s.require(s.value("blind half", "hires-cam") > 0.999, "blind half: hires-cam shows what cannot matter")
    return (
        "**Where a linear head follows directly but weighs positions differently, use `HiResCAM`.** It shows only "
        "what the score depends on, which is arithmetic and holds for that one layer: nothing of the blind half, "
        f"into which `GradCAM` puts {half[0]} more of its map, `ScoreCAM` {half[1]} and `AblationCAM` {half[2]}. In "
        f"mosaics whose other cells cannot matter at that layer (DiPart) it is {part[0]} better than `GradCAM`, "
        f"{part[1]} better than `XGradCAM` and {part[2]} better than `AblationCAM`."
    )


def earlier_layers(s: Stored) -> str:
    """Return the conclusion about layers one stage and two stages before the last one."""
    shown, one_before = s.verdict(_EARLIER[0], "grad-cam", "hires-cam")
    gratings = s.better(_EARLIER[1], "grad-cam", "hires-cam")
    outlines = [s.in_all(f"demo, {column}", "hires-cam", "grad-cam") for column in _EARLIER]
    guided = [s.better(column, "guided-grad-cam", "grad-cam") for column in _EARLIER]
    guided_too = [s.in_all(f"demo, {column}", "guided-grad-cam", "grad-cam") for column in _EARLIER]
    mosaics = s.pictures(f"demo, {_EARLIER[0]}", "hires-cam", "grad-cam")
    return (
        "**At earlier stages, it is open whether `GradCAM` or `HiResCAM` is better.** In mosaics, two stages before "
        f"the last, {s.networks(_EARLIER[1])} networks that name gratings have {gratings} more of the `GradCAM` map "
        f"than of the `HiResCAM` map in the right cell; one stage before the last, "
        f"{f'{one_before} more' if shown else f'this is not shown ({one_before})'}. The demo model, which "
        f"names outlines, has more of the `HiResCAM` map there in each of {mosaics} mosaics, on average {outlines[0]} "
        f"more one stage before the last and {outlines[1]} more two stages before it. With gratings `GuidedGradCAM` is "
        f"{guided[0]} and {guided[1]} better than `GradCAM`; in the {mosaics} mosaics of the demo model it is "
        f"{guided_too[0]} and {guided_too[1]} better. With so few pictures of one network, no difference survives "
        "Holm's correction, so nothing is shown for the demo model. Explain the last stage unless you have a reason."
    )


def against(s: Stored) -> str:
    """Return the conclusion about class-agnostic methods."""
    two, grid = s.better("two objects", "grad-cam", "eigen-cam"), s.better("GridPG", "grad-cam", "eigen-cam")
    for column in _SIZES:
        apart = abs(s.value(column, "grad-cam") - s.value(column, "eigen-cam"))
        s.require(apart < 0.05, f"{column}: grad-cam and eigen-cam differ by {apart:.3f}")
    for column, mean in (("two objects", 0.5), ("GridPG", 0.25)):
        s.require(abs(s.value(column, "eigen-cam") - mean) < 1e-4, f"{column}: eigen-cam depends on the class")
    return (
        "**`EigenCAM` looks good only where there is one object**: with one, it is within 0.05 of `GradCAM`. It "
        "draws the same map for every class, so with two objects its mean over both is 1/2, and in mosaics of four "
        "1/4: that is arithmetic, and holds for any map that does not depend on the class. `GradCAM` is "
        f"{two} and {grid} above it."
    )


def saturated(s: Stored) -> str:
    """Return the conclusion about saturated gates."""
    for row in ("grad-cam", "hires-cam", "layer-cam", "grad-cam++"):
        s.require(s.all_empty("or", row), f"or: not all maps of {row} are empty")
    for row in ("integrated-grad-cam", "recipro-cam"):
        s.require(s.value("or", row) > 0.9, f"or: {row} does not find both parts")
    gate, both = s.better("or", "integrated-grad-cam", "score-cam"), s.better("and", "grad-cam", "score-cam")
    return (
        "**Where the score is saturated, gradients are empty** (or): all maps of `GradCAM`, `HiResCAM`, `LayerCAM` and "
        f"`GradCAMPlusPlus` are. `IntegratedGradCAM` ({s.mean('or', 'integrated-grad-cam')}) and `ReciproCAM` "
        f"({s.mean('or', 'recipro-cam')}) still find both parts; `ScoreCAM` is {gate} below `IntegratedGradCAM`. "
        f"Where two parts are needed together (and), `ScoreCAM` is {both} below `GradCAM`, because the score is 0 as "
        "long as only one part is visible. These are wired networks, so this says that it can happen, not how often."
    )


def small_objects(s: Stored) -> str:
    """Return the conclusion about maps that are coarser than the explained objects."""
    guided = [s.better(column, "guided-grad-cam", "grad-cam") for column in ("small", "large")]
    chance = s.better("two objects", "guided-grad-cam", "guided-backprop")
    on_both = zip(s.by_network("small", "grad-cam"), s.by_network("large", "grad-cam"), strict=True)
    s.require(
        all(small < large for small, large in on_both),
        "grad-cam is not less on small disks than on large ones in every network",
    )
    for column in ("small", "large"):
        outside = s.value(column, "grad-cam") < 0.5
        s.require(outside, f"{column}: most of grad-cam lies on the disks")
    return (
        "**Most of Grad-CAM's map lies outside the object** at 8 x 8 positions: "
        f"{s.mean('small', 'grad-cam')} of it is on a small disk and {s.mean('large', 'grad-cam')} on a large one; a "
        f"map of ones has {s.mean('small', 'ones')} and {s.mean('large', 'ones')} there. `GuidedGradCAM`, as fine as "
        f"the picture, puts {guided[0]} and {guided[1]} more there, so its gain is not special to small disks. "
        f"Guided backpropagation alone depends less on the class: of two objects it has {chance} less on the right one."
    )


def planted(s: Stored) -> str:
    """Return the conclusion about a planted shortcut."""
    full = s.better("shortcut", "grad-cam", "full-grad")
    shown, random = s.verdict("shortcut", "grad-cam", "random-cam")
    larger = (
        f"which is {random} less than with `GradCAM`"
        if shown
        else f"and a larger growth with `GradCAM` is not shown ({random})"
    )
    effects = [s.note("shortcut", f"correlation {one}", _EFFECT) for one in CORRELATIONS]
    shares = [100 * s.note("shortcut", f"correlation {one}", _SHARE, "grad-cam") for one in CORRELATIONS]
    for what, ordered in (("effect", effects), ("share", shares)):
        s.require(ordered == sorted(ordered), f"shortcut: the {what} does not grow with the correlation: {ordered}")
    s.require(s.low("shortcut", "grad-cam") > 0, "shortcut: the share of grad-cam does not grow")
    s.require(s.low("shortcut", "random-cam") > 0, "shortcut: the share of random-cam does not grow")
    return (
        "**A planted shortcut is seen where the model relies on it.** From networks trained with a patch that is "
        "unrelated to the label (correlation 0) to networks trained with one that determines it (1), the patch's share "
        f"of the Grad-CAM map grows by {s.interval('shortcut', 'grad-cam')}. This exceeds the growth with `FullGrad`, "
        f"which sums over all layers, by {full}. With random channel weights, the patch's share grows as well, by "
        f"{s.interval('shortcut', 'random-cam')}, {larger}. At "
        "correlations 0, 0.5, 0.9 and 1 the patch's measured "
        f"effect on the margin is {listed(effects, '.1f')}, and its share of the Grad-CAM map "
        f"{listed(shares, '.0f')} %; these are means, and steps in between are not tested."
    )


def series(s: Stored) -> str:
    """Return the conclusion about finding the right one of several series."""
    which = s.better("series, which", "dcam", "grad-cam")
    return (
        "**In which of several series the pattern is**, only `dcam` is designed to tell. Its average precision is "
        f"{s.interval('series, which', 'dcam')}, which is {which} higher than the precision of a map over time."
    )


def photographs(s: Stored) -> str:
    """Return the conclusion that six photographs do not rank methods."""
    unclear = s.unclear("photographs, share", "grad-cam", "random-cam")
    center = s.value("photographs, share", "center") > s.value("photographs, share", "random")
    s.require(center, "photographs: a map of the center is not above random ones")
    return (
        "**Six photographs and one network rank no methods.** On MobileNetV2 `GradCAM` has "
        f"{s.interval('photographs, share', 'grad-cam')} of its map in the frame, and "
        f"{s.mean('photographs, peak', 'grad-cam')} of its maxima lie there; random maps have "
        f"{s.mean('photographs, share', 'random')} there, and a map of the center has "
        f"{s.mean('photographs, share', 'center')}, as photographers center what they show. That `GradCAM` differs "
        f"from random channel weights is not shown ({unclear})."
    )


CONCLUSIONS: tuple[Callable[[Stored], str], ...] = (
    linear_head,
    zero_is_zero,
    earlier_layers,
    against,
    saturated,
    small_objects,
    planted,
    transformers,
    removed,
    random_channels,
    series,
    photographs,
)


def pairs() -> tuple[Pair, ...]:
    """Return all pairs that the sentences use."""
    asked = Asked()
    for conclusion in CONCLUSIONS:
        conclusion(asked)
    return tuple(asked.pairs)


def text(results: Mapping[str, Any]) -> str:
    """Return the conclusions as a list, in lines of the page's width.

    Raises:
        UnsupportedError: the numbers do not support one of the conclusions.
    """
    return "\n".join(_bullet(conclusion(Stored(results))) for conclusion in CONCLUSIONS)


def _bullet(sentences: str) -> str:
    return fill(
        sentences,
        _WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )

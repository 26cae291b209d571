"""The conclusions of docs/where-right.md, each made from the stored numbers that support it.

A sentence that says better asks `Stored.better`, which raises where the paired test does not say so; the pairs that
sentences ask for are those that a run tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

from benchmarks.ground_truth.bootstrap import Pair
from benchmarks.ground_truth.shortcut import CORRELATIONS
from benchmarks.ground_truth.stored import Asked, Stored

_WIDTH = 125
_SIZES = ("small", "medium", "large")
_TRANSFORMERS = ("transformer", "transformer, two", "transformer, ignored", "transformer, mean", "transformer, windows")
_EFFECT = "effect of the patch on the margin of the logits"
_SHARE = "share of the map on the patch"
_EARLIER = ("GridPG, layer3", "GridPG, layer2")


def linear_head(s: Stored) -> str:
    """Grad-CAM where mean pooling and a linear head follow."""
    for column in (*_SIZES, "two objects", "GridPG", "demo", "demo, GridPG"):
        for other in ("hires-cam", "xgrad-cam", "cam"):
            apart = abs(s.value(column, "grad-cam") - s.value(column, other))
            s.require(apart < 0.01, f"{column}: grad-cam and {other} differ by {apart:.3f}")
    two = [s.better("two objects", "grad-cam", other) for other in ("layer-cam", "grad-cam++", "score-cam")]
    grid = [s.better("GridPG", "grad-cam", other) for other in ("layer-cam", "grad-cam++", "score-cam")]
    return (
        "**Behind mean pooling and a linear head**, take `GradCAM`; `HiResCAM`, `XGradCAM` and `CAM` show the same "
        f"there. Of two objects it shows the right one ({s.mean('two objects', 'grad-cam')} of what lies on both): "
        f"{two[0]} more than `LayerCAM`, {two[1]} more than `GradCAMPlusPlus` and {two[2]} more than `ScoreCAM`. In "
        f"mosaics of four (GridPG) it is {grid[0]}, {grid[1]} and {grid[2]}, in the same order."
    )


def zero_is_zero(s: Stored) -> str:
    """HiResCAM where a linear head follows at once."""
    half = [s.better("blind half", "hires-cam", other) for other in ("grad-cam", "score-cam", "ablation-cam")]
    part = [s.better("DiPart", "hires-cam", other) for other in ("grad-cam", "xgrad-cam", "ablation-cam")]
    s.require(s.value("blind half", "hires-cam") > 0.999, "HiResCAM shows what cannot matter")
    return (
        "**Where a linear head follows at once but weighs places differently, take `HiResCAM`.** It shows only "
        "where the score depends on the layer: nothing of the blind half, into which `GradCAM` puts "
        f"{half[0]} more of its map, `ScoreCAM` {half[1]} and `AblationCAM` {half[2]}. In mosaics whose other cells "
        f"cannot matter (DiPart) it is {part[0]} better than `GradCAM`, {part[1]} than `XGradCAM`, {part[2]} than "
        "`AblationCAM`. This is arithmetic, and holds for that one layer."
    )


def earlier_layers(s: Stored) -> str:
    """What holds one and two stages earlier."""
    gratings = [s.better(column, "grad-cam", "hires-cam") for column in _EARLIER]
    outlines = [s.better(f"demo, {column}", "hires-cam", "grad-cam") for column in _EARLIER]
    guided = [
        s.better(column, "guided-grad-cam", "grad-cam") for column in (*_EARLIER, *(f"demo, {one}" for one in _EARLIER))
    ]
    return (
        "**Stages earlier, which of them is better depends on the network**, and nothing is proven. In mosaics, one "
        f"and two stages before the last, {s.networks('GridPG')} networks that name gratings have {gratings[0]} and "
        f"{gratings[1]} more of `GradCAM`'s map in the right cell than of `HiResCAM`'s; the demo model, which names "
        f"outlines, has {outlines[0]} and {outlines[1]} more of `HiResCAM`'s, and is one network. `GuidedGradCAM` is "
        f"better than `GradCAM` in all four: with gratings by {guided[0]} and {guided[1]}, with outlines by "
        f"{guided[2]} and {guided[3]}. Explain the last stage unless you have a reason."
    )


def against(s: Stored) -> str:
    """Class-agnostic methods."""
    two, grid = s.better("two objects", "grad-cam", "eigen-cam"), s.better("GridPG", "grad-cam", "eigen-cam")
    for column in _SIZES:
        apart = abs(s.value(column, "grad-cam") - s.value(column, "eigen-cam"))
        s.require(apart < 0.05, f"{column}: grad-cam and eigen-cam differ by {apart:.3f}")
    for column, chance in (("two objects", 0.5), ("GridPG", 0.25)):
        apart = abs(s.value(column, "eigen-cam") - chance)
        s.require(apart < 0.05, f"{column}: eigen-cam is {apart:.3f} from chance")
    return (
        "**Class-agnostic methods look good only where there is one object**: with one, `EigenCAM` is within 0.05 of "
        f"Grad-CAM, with two and in mosaics it is at chance, {two} and {grid} below. `cam.check` says so."
    )


def saturated(s: Stored) -> str:
    """Gates."""
    for row in ("grad-cam", "hires-cam", "layer-cam", "grad-cam++"):
        s.require(s.empty("or", row) == "100 %", f"or: not all maps of {row} are empty")
    gate, both = s.better("or", "integrated-grad-cam", "score-cam"), s.better("and", "grad-cam", "score-cam")
    return (
        "**Where the score is saturated, gradients are empty** (or): all maps of `GradCAM`, `HiResCAM`, `LayerCAM` and "
        f"`GradCAMPlusPlus` are. `IntegratedGradCAM` ({s.mean('or', 'integrated-grad-cam')}) and `ReciproCAM` "
        f"({s.mean('or', 'recipro-cam')}) still find both parts, `ScoreCAM` less ({gate} below the first). Where two "
        f"parts are needed together (and), `ScoreCAM` is {both} below `GradCAM`: no single channel has a score. These "
        "are wired networks, so this says that it can happen, not how often."
    )


def small_objects(s: Stored) -> str:
    """Small objects need finer maps."""
    guided = [s.better(column, "guided-grad-cam", "grad-cam") for column in ("small", "large")]
    chance = s.better("two objects", "guided-grad-cam", "guided-backprop")
    return (
        "**Small objects need finer maps.** Of Grad-CAM's map at 8 x 8 positions "
        f"{s.mean('small', 'grad-cam')} lies on a small disk and {s.mean('large', 'grad-cam')} on a large one. "
        f"`GuidedGradCAM` puts {guided[0]} and {guided[1]} more there. Guided backpropagation alone depends less on "
        f"the class: of two objects {chance} less on the right one."
    )


def planted(s: Stored) -> str:
    """A planted shortcut."""
    less = [s.better("shortcut", "grad-cam", other) for other in ("full-grad", "random-cam")]
    effects = [s.note("shortcut", f"correlation {one}", _EFFECT) for one in CORRELATIONS]
    shares = [100 * s.note("shortcut", f"correlation {one}", _SHARE, "grad-cam") for one in CORRELATIONS]
    for what, ordered in (("effect", effects), ("share", shares)):
        s.require(ordered == sorted(ordered), f"shortcut: the {what} does not grow with the correlation: {ordered}")
    return (
        "**A planted shortcut is seen** as soon as the model relies on it. From correlation 0 to 0.5, 0.9 and 1 the "
        f"patch's measured effect on the margin is {_listed(effects, '.1f')}, and its share of the Grad-CAM map "
        f"{_listed(shares, '.0f')} %. From the first to the last it grows by {s.interval('shortcut', 'grad-cam')}, by "
        f"{less[0]} more than that of `FullGrad`, which sums all layers, and by {less[1]} more than that of random "
        "channel weights."
    )


def transformers(s: Stored) -> str:
    """Balanced gradients."""
    rivals = ("hires-cam", "grad-cam", "attention-rollout", "grad-eclip", "random-cam")
    first = [s.better("transformer", "balanced-cam", other) for other in rivals]
    hires = [s.better(column, "balanced-cam", "hires-cam") for column in _TRANSFORMERS[1:]]
    masks = s.better("transformer", "balanced-cam", "score-cam")
    worst = min(_TRANSFORMERS, key=lambda column: s.value(column, "balanced-cam"))
    s.require(worst == "transformer, ignored", f"balanced-cam is worst in {worst!r}")
    other = s.note("transformer, two", "share of balanced-cam on the other square")
    return (
        "**On vision transformers take [`BalancedCAM`](how-to/transformers.md).** It puts "
        f"{s.interval('transformer', 'balanced-cam')} of its map on the only square that matters, which is {first[0]} "
        f"more than `HiResCAM`, {first[1]} more than `GradCAM`, {first[2]} more than `AttentionRollout`, {first[3]} "
        f"more than `GradECLIP`, {first[4]} more than random channel weights, and {masks} more than `ScoreCAM`, which "
        f"takes a pass for each channel. Over `HiResCAM` it gains {hires[0]} with two colors (of its map "
        f"{s.mean('transformer, two', 'balanced-cam')} is on the square that is explained and {other:.2f} on the other "
        f"one), {hires[1]} with a frame that is to be ignored, {hires[2]} behind the mean of all patches, and "
        f"{hires[3]} with shifted windows. It is worst with the frame: "
        f"{s.interval('transformer, ignored', 'balanced-cam')}. All of these networks are small and trained in "
        "seconds; on large ones with weights nothing is measured here, so check a map against a change of the image."
    )


def random_channels(s: Stored) -> str:
    """One draw proves nothing."""
    unclear = s.unclear("transformer", "random-cam", "grad-cam")
    in_time = s.unclear("series, when", "random-cam", "random")
    lowest, highest = s.draws("transformer", "random-cam")
    low, high = s.draws("series, when", "random-cam")
    return (
        "**One draw and one network prove nothing.** Random channel weights (`RandomCAM`) reach from "
        f"{lowest:.2f} to {highest:.2f} on the transformers and from {low:.2f} to {high:.2f} in time, by the draw and "
        "the network. Over all of them they are neither shown to differ from `GradCAM` at the last block of the "
        f"transformers ({unclear}) nor from random maps in time ({in_time})."
    )


def series(s: Stored) -> str:
    """In which of several series."""
    which = s.better("series, which", "dcam", "grad-cam")
    return (
        "**In which of several series the pattern is**, only `dcam` is made to tell: its average precision is "
        f"{s.interval('series, which', 'dcam')}, {which} above that of a map over time."
    )


def photographs(s: Stored) -> str:
    """Six photographs rank nothing."""
    unclear = s.unclear("photographs, share", "grad-cam", "random-cam")
    return (
        "**Six photographs and one network rank no methods.** On MobileNetV2 `GradCAM` has "
        f"{s.interval('photographs, share', 'grad-cam')} of its map in the frame and "
        f"{s.mean('photographs, peak', 'grad-cam')} of its maxima; random maps have "
        f"{s.mean('photographs, share', 'random')}, and a map of the center {s.mean('photographs, share', 'center')}, "
        f"as photographers center what they show. Beside random channel weights the difference is {unclear}, which "
        "chance explains."
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
    random_channels,
    series,
    photographs,
)


def pairs() -> tuple[Pair, ...]:
    """All pairs that a sentence asks for."""
    asked = Asked()
    for conclusion in CONCLUSIONS:
        conclusion(asked)
    return tuple(asked.pairs)


def text(results: Mapping[str, Any]) -> str:
    """The conclusions as a list, in lines of the page's width.

    Raises:
        UnsupportedError: the numbers do not support one of them.
    """
    return "\n".join(_bullet(conclusion(Stored(results))) for conclusion in CONCLUSIONS)


def _listed(numbers: Sequence[float], form: str) -> str:
    """Numbers in a sentence."""
    said = [f"{round(number, 1) + 0.0:{form}}" for number in numbers]
    return f"{', '.join(said[:-1])} and {said[-1]}"


def _bullet(sentences: str) -> str:
    return fill(
        sentences,
        _WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )

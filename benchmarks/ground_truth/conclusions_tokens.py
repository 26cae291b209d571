"""The conclusions about transformers in docs/where-right.md, each made from the stored numbers that support it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor

from benchmarks.ground_truth.scoring import DELETION, TRUTHS
from benchmarks.ground_truth.stored import Stored, joined, listed
from benchmarks.ground_truth.tokens import OF_EMPTY

_OTHERS = {name: f"transformer, {name}" for name in ("two", "ignored", "mean", "windows")}
_MARGIN = 0.05
"""A deletion score that is higher by less than this margin is considered equally good."""


def transformers(s: Stored) -> str:
    """Return the conclusion about balanced gradients."""
    rivals = ("hires-cam", "grad-cam", "attention-rollout", "grad-eclip", "random-cam")
    first = [s.better("transformer", "balanced-cam", other) for other in rivals]
    masks = s.better("transformer", "balanced-cam", "score-cam")
    two, mean, windows = (s.better(_OTHERS[name], "balanced-cam", "hires-cam") for name in ("two", "mean", "windows"))
    shown, ignored = s.verdict(_OTHERS["ignored"], "balanced-cam", "hires-cam")
    for column, least in (("transformer", 0.5), (_OTHERS["two"], 0.45)):
        s.require(s.value(column, "balanced-cam") >= least, f"{column}: balanced-cam is below {least}")
    other = s.note(_OTHERS["two"], "share of balanced-cam on the other square")
    s.require(other <= 0.05, f"balanced-cam has {other:.2f} on the other square")
    counted = f"{s.networks(_OTHERS['ignored'])} of {s.trained(_OTHERS['ignored'])}"
    frame = f"it is better by {ignored}" if shown else f"this is not shown ({ignored})"
    more = "" if shown else "; more trainings are needed to settle it"
    return (
        "**On vision transformers use [`BalancedCAM`](how-to/transformers.md).** It puts "
        f"{s.interval('transformer', 'balanced-cam')} of its map on the only square that matters, which is {first[0]} "
        f"more than `HiResCAM`, {first[1]} more than `GradCAM`, {first[2]} more than `AttentionRollout`, {first[3]} "
        f"more than `GradECLIP`, {first[4]} more than random channel weights, and {masks} more than `ScoreCAM`, which "
        f"takes a pass for each channel. It is better than `HiResCAM` by {two} with two colors (of its map "
        f"{s.mean(_OTHERS['two'], 'balanced-cam')} is on the square that is explained and {other:.2f} on the other "
        f"one), by {mean} with a head after the mean of all patches, and by {windows} with shifted windows. With a "
        f"frame that is to be ignored, {frame}: {counted} networks name the color well enough to count{more}. All of "
        "these networks are small and trained in seconds; large pretrained transformers are not measured here, so "
        "check a map against a change of the image."
    )


def removed(s: Stored) -> str:
    """Return the conclusion about deletion on transformers."""
    columns = {
        words: f"transformer{family}{DELETION}"
        for words, family in (("a class token", ""), ("the mean of all patches", ", mean"), ("windows", ", windows"))
    }
    verdicts = {words: s.verdict(column, "balanced-cam", TRUTHS[1], _MARGIN) for words, column in columns.items()}
    excluded, left = ([words for words in columns if verdicts[words][0] == is_so] for is_so in (True, False))
    above = max(_apart(s, columns.values(), "balanced-cam", TRUTHS[1]))
    s.require(above < _MARGIN, f"in one network, the deletion area of balanced-cam exceeds the mask's by {above:.2f}")
    hires = min(_apart(s, columns.values(), "hires-cam", "balanced-cam"))
    s.require(
        hires > 0, f"in one network, the deletion area of hires-cam is {-hires:.2f} smaller than that of balanced-cam"
    )
    named = [s.note(column, OF_EMPTY) for column in columns.values()]
    s.require(min(named) > 0.5, f"an empty picture is not named with a probability above 0.5 in every column: {named}")
    own, coarse, exact, random = (
        listed([s.value(column, row) for column in columns.values()], ".2f")
        for row in ("balanced-cam", TRUTHS[1], TRUTHS[0], "random")
    )
    by_column = [[f"transformer{family}{what}" for family in ("", ", mean")] for what in (DELETION, "")]
    rollout, on_square = (
        listed([s.value(column, "attention-rollout") for column in both], ".2f") for both in by_column
    )
    return (
        "**Deletion agrees on transformers.** Where pixels are replaced by 0 in the order of the map, 32 at a time, "
        f"the area under the curve of the probability is {own} for `BalancedCAM` (with {joined(list(columns))}), "
        f"{coarse} for the true mask averaged over patches and enlarged as maps are ({exact} for the mask as it is), "
        f"and {random} for random maps. In none of these networks does the area of `BalancedCAM` exceed that of the "
        f"averaged mask by more than {ceil(100 * max(above, 0)) / 100:.2f}; the area of `HiResCAM` exceeds that of "
        f"`BalancedCAM` by at least {floor(100 * hires) / 100:.2f} in each. On average `BalancedCAM` is "
        f"{joined([said for _, said in verdicts.values()])} below the averaged mask; that it exceeds the mask by "
        f"{_MARGIN} in networks of this kind is {_excluded(excluded, left)}. Deletion depends only on the order of "
        f"positions, so it does not tell all maps apart: `AttentionRollout` has areas of {rollout} with {on_square} of "
        "its map on the square (class token, mean of all patches). For an empty picture the networks still name one of "
        f"the four colors, with a probability of {listed(named, '.2f')} on average: a quarter of the pictures keep "
        "their color when everything is removed."
    )


def _apart(s: Stored, columns: Iterable[str], row: str, other: str) -> list[float]:
    """Return the difference of the means of two rows for each network."""
    pairs = [pair for one in columns for pair in zip(s.by_network(one, row), s.by_network(one, other), strict=True)]
    return [first - second for first, second in pairs]


def _excluded(shown: Sequence[str], left: Sequence[str]) -> str:
    if not left:
        return "excluded"
    return f"excluded with {joined(shown)} and not with {joined(left)}" if shown else "not excluded"


def random_channels(s: Stored) -> str:
    """Return the conclusion that a single draw proves nothing."""
    unclear = s.not_shown("transformer", "random-cam", "grad-cam")
    in_time = s.not_shown("series, when", "random-cam", "random")
    spans = [s.draws(column, "random-cam") for column in ("transformer", "series, when")]
    for low, high in spans:
        s.require(high - low > 0.2, f"draws of random-cam differ by only {high - low:.2f}")
    return (
        "**One draw and one network prove nothing.** Random channel weights (`RandomCAM`) score from "
        f"{spans[0][0]:.2f} to {spans[0][1]:.2f} on the transformers and from {spans[1][0]:.2f} to {spans[1][1]:.2f} "
        "for the time of a pattern in a series, depending on the draw and the network. Over all draws and networks, "
        f"they are shown to differ neither from `GradCAM` at the last block of the transformers ({unclear}) nor from "
        f"random maps for the time of a pattern ({in_time})."
    )

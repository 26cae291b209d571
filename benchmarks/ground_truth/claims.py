"""The pairs that are tested, because a sentence of docs/where-right.md says that one is better than the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.ground_truth.bootstrap import Pair

_TRANSFORMERS = ("transformer", "transformer, two", "transformer, ignored", "transformer, mean", "transformer, windows")
_SIZES = ("small", "medium", "large")


def _pairs(columns: Iterable[str], better: Iterable[str], worse: Iterable[str]) -> Iterator[Pair]:
    """Each of one against each of the other, in each column."""
    others = tuple(worse)
    return (Pair(column, one, other) for column in columns for one in better for other in others)


PAIRS: tuple[Pair, ...] = (
    # Behind mean pooling and a linear head.
    *_pairs(_SIZES, ["grad-cam"], ["layer-cam", "grad-cam++", "score-cam", "eigen-cam", "random-cam", "random"]),
    *_pairs(["two objects", "GridPG"], ["grad-cam"], ["layer-cam", "grad-cam++", "score-cam", "eigen-cam", "random"]),
    # What cannot matter.
    *_pairs(["blind half"], ["hires-cam"], ["grad-cam", "grad-cam++", "score-cam", "ablation-cam"]),
    *_pairs(["DiPart", "DiFull"], ["hires-cam"], ["grad-cam", "xgrad-cam", "ablation-cam"]),
    # Earlier layers.
    *_pairs(["GridPG, layer3", "GridPG, layer2"], ["hires-cam"], ["grad-cam", "xgrad-cam", "layer-cam", "random"]),
    *_pairs(["earlier layer"], ["hires-cam", "layer-cam"], ["grad-cam", "grad-cam++"]),
    # Saturation, and two parts that are needed together.
    *_pairs(["or"], ["integrated-grad-cam"], ["score-cam", "ablation-cam"]),
    *_pairs(["and"], ["grad-cam"], ["score-cam"]),
    # Small objects.
    *_pairs(_SIZES, ["guided-grad-cam"], ["grad-cam"]),
    # A shortcut.
    *_pairs(["shortcut"], ["grad-cam"], ["full-grad", "winsor-cam", "random-cam"]),
    # Transformers.
    *_pairs(
        _TRANSFORMERS,
        ["balanced-cam"],
        ["hires-cam", "grad-cam", "attention-rollout", "generic-attention", "grad-eclip", "legrad", "random-cam"],
    ),
    *_pairs(_TRANSFORMERS, ["random-cam"], ["hires-cam", "grad-cam"]),
    # Series.
    *_pairs(["series, which"], ["dcam"], ["grad-cam", "edges"]),
    *_pairs(["series, when"], ["random-cam"], ["grad-cam"]),
    # Photographs.
    *_pairs(["photographs, share"], ["grad-cam", "layer-cam"], ["random", "random-cam"]),
)

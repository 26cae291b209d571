"""Find duplicate pictures within and across data sets: exact copies, and near copies such as recompressed files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from gradcam_kit.diagnostics.checks.splits import Split
from gradcam_kit.diagnostics.findings import Finding

_BITS = 2  # maximum number of differing bits in the average hashes of near duplicates
_ALIKE = 0.99  # minimum correlation of the thumbnails of near duplicates
_ROWS, _PAIRS = 512, 8192
_SHOWN = 5
_MOST = 1000  # maximum number of pairs to report


@dataclass(frozen=True)
class Twins:
    """Two samples with the same picture, or with nearly the same one.

    Attributes:
        first: the split of one sample, and its index in the split.
        second: the split of the other sample, and its index in the split.
        exact: whether all pixels are equal.
        likeness: correlation of the thumbnails.
    """

    first: tuple[Split, int]
    second: tuple[Split, int]
    exact: bool
    likeness: float

    @property
    def names(self) -> tuple[str, str]:
        """The names of both samples."""
        return self.first[0].names[self.first[1]], self.second[0].names[self.second[1]]

    @property
    def crosses(self) -> bool:
        """Whether the two samples are in different splits."""
        return self.first[0] is not self.second[0]

    @property
    def conflict(self) -> bool:
        """Whether both samples are labeled, and their labels differ."""
        a, b = (split.labels[index] for split, index in (self.first, self.second))
        return a is not None and b is not None and a != b


def find_twins(splits: Iterable[Split]) -> list[Twins]:
    """Return up to 1,000 pairs of duplicate pictures, exact copies first, each paired with its first occurrence."""
    splits = list(splits)
    places = [(split, i) for split in splits for i in range(len(split.digests))]
    groups: dict[bytes, list[tuple[Split, int]]] = defaultdict(list)
    for split, i in places:
        groups[split.digests[i]].append((split, i))
    twins, known = [], set()
    for group in groups.values():
        for other in group[1:]:
            twins.append(Twins(group[0], other, True, 1.0))
            known.add((id(other[0]), other[1]))
    rest = [(split, i) for split in splits for i in range(len(split.prints)) if (id(split), i) not in known]
    return [*twins, *_near(rest)][:_MOST]


def twin_findings(twins: list[Twins], n: int) -> list[Finding]:
    """Return findings about duplicates across splits, within a split, and with different labels."""
    conflicts = [pair for pair in twins if pair.conflict]
    return [
        *_finding(
            [pair for pair in twins if pair.crosses],
            "leak",
            "Remove these pictures from one of the data sets: a test on known pictures measures memorization. Split by "
            "scene, patient or video, "
            "not by picture",
            n,
        ),
        *_finding(
            conflicts,
            "label-conflict",
            "Look at each pair and decide on one label: no model can learn both",
            n,
        ),
        *_finding(
            [pair for pair in twins if not pair.crosses and not pair.conflict],
            "duplicate",
            "Remove the copies: repeated pictures get more weight in training, and may end up on both sides of a split",
            n,
        ),
    ]


def _finding(pairs: list[Twins], kind: str, advice: str, n: int) -> list[Finding]:
    if not pairs:
        return []
    exact = sum(pair.exact for pair in pairs)
    how = "the same pixels" if exact == len(pairs) else "nearly the same pixels" if not exact else f"{exact} exact"
    shown = ", ".join(_shown(pair, kind) for pair in pairs[:_SHOWN])
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    many = len(pairs) > 1
    who = f"{len(pairs)} {'pictures' if many else 'picture'}"
    text = {
        "leak": f"{who} of the test set {'are' if many else 'is'} in the training set too",
        "label-conflict": f"{who} {'occur' if many else 'occurs'} twice with different labels",
        "duplicate": f"{who} {'occur' if many else 'occurs'} twice in one data set",
    }[kind]
    return [
        Finding(
            "warn" if kind == "duplicate" else "bad",
            kind,
            "",
            f"{text} ({how}): {shown}{more}",
            float(len(pairs)),
            0.0,
            n,
            advice,
            f"equal pixels, or average hashes within {_BITS} bits and correlation above {_ALIKE}",
        )
    ]


def _shown(pair: Twins, kind: str) -> str:
    (a, i), (b, j) = pair.first, pair.second
    first, second = pair.names
    if kind == "label-conflict":
        return f"{first} ({a.labels[i]}) = {second} ({b.labels[j]})"
    return f"{first} = {second}"


def _near(places: list[tuple[Split, int]]) -> Iterator[Twins]:
    """Yield near duplicates among non-constant pictures, each paired with the first picture similar to it."""
    places = [(split, i) for split, i in places if bool(split.prints[i].any())]
    if len(places) < 2:
        return
    sizes = {len(split.prints[i]) for split, i in places}
    for size in sizes:  # thumbnails with different numbers of channels differ in length
        own = [(split, i) for split, i in places if len(split.prints[i]) == size]
        prints = torch.stack([split.prints[i] for split, i in own])
        signs = torch.stack([split.hashes[i] for split, i in own]).float() * 2 - 1
        taken: set[int] = set()
        for start in range(0, len(own), _ROWS):
            agreement = signs[start : start + _ROWS] @ signs.mT
            rows, columns = (agreement >= signs.shape[1] - 2 * _BITS).nonzero(as_tuple=True)
            rows = rows + start
            above = columns > rows
            for pairs in torch.stack([rows[above], columns[above]], dim=1).split(_PAIRS):
                likeness = (prints[pairs[:, 0]].float() * prints[pairs[:, 1]].float()).sum(dim=1)
                for (a, b), value in zip(pairs.tolist(), likeness.tolist(), strict=True):
                    if value > _ALIKE and b not in taken:
                        taken.add(b)
                        yield Twins(own[a], own[b], False, value)

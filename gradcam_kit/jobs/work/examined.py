"""Examine a folder of pictures as a data set: read each picture once, and keep a batch for the model."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

import torch
from torch import Tensor

from gradcam_kit.diagnostics.checks.splits import Split
from gradcam_kit.diagnostics.checks.tasks import outputs_of
from gradcam_kit.errors import InputError, raise_interruption
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.sources.index import Entry, index_pictures
from gradcam_kit.jobs.sources.reading import decoders_quiet, picture_of
from gradcam_kit.jobs.work.explainer import Explainer

MOST = 5000
"""Maximum number of examined pictures per folder; larger folders are sampled evenly."""

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "eval")
_DIM = 8  # a picture whose values span fewer of 256 gray levels is nearly empty

ClassOf = Callable[[Entry], int | None]


@dataclass(frozen=True)
class Judged:
    """A labeled picture with the model's probabilities of its label and of the predicted class."""

    name: str
    label: int
    predicted: int
    of_label: float
    of_predicted: float


@dataclass
class Examined:
    """Statistics of a folder.

    Attributes:
        split: input of the data checks.
        entries: pictures by their names in messages.
        counts: number of pictures by label, as written.
        unknown: number of pictures by label, for labels that match no class of the model.
        unreadable: pictures that could not be read or transformed, with the reason.
        dim: pictures that are not constant, but whose values span fewer than 8 gray levels.
        judged: the model's probabilities, if it is trained.
        images: images kept for the model, with the classes of their labels.
        left: number of pictures that were not examined.
    """

    split: Split
    entries: dict[str, Entry] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    dim: list[str] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    images: list[tuple[Tensor, int | None]] = field(default_factory=list)
    left: int = 0

    def batch(self) -> tuple[Tensor, Tensor | None]:
        """Return the labeled images and their labels if most kept images have one, else all kept images and None."""
        labeled = [(image, label) for image, label in self.images if label is not None]
        if len(labeled) * 2 > len(self.images):
            return torch.stack([image for image, _ in labeled]), torch.tensor([label for _, label in labeled])
        return torch.stack([image for image, _ in self.images]), None


def list_folders(data: str, test: str | None, out: str) -> tuple[list[Entry], list[Entry] | None, str]:
    """List the pictures of the training set and of the test set, if there is one, with a description of both.

    Without `test`, subfolders of `data` with names such as `train` and `test` (or `val`) are the two sets.

    Raises:
        InputError: a folder holds no pictures.
    """
    entries = index_pictures(data, out)
    if test is not None:
        return entries, index_pictures(test, out), f"training set {data}, test set {test}"
    first = {entry.folders[0].lower() for entry in entries if entry.folders}
    parts = [name for name in _TRAIN if name in first], [name for name in _TEST if name in first]
    if not all(parts):
        return entries, None, f"one data set, {data}"
    train, held = (
        [entry for entry in entries if entry.folders and entry.folders[0].lower() in names] for names in parts
    )
    return train, held, f"training set {data}/{parts[0][0]}, test set {data}/{' and '.join(parts[1])}"


def classes_of(explainer: Explainer, entries: Sequence[Entry], outputs: int) -> tuple[ClassOf, str]:
    """Return a function that maps each picture to the class of its label, and a description of how labels are read.

    Args:
        explainer: the explainer, which holds the class names of the model if they are known.
        entries: all pictures, whose labels determine the classes if class names are unknown.
        outputs: number of classes of the model.
    """
    labels = explainer.labels
    if labels.names:
        return labels.index, "labels come from folders or a table, read as class names of the model"
    found = sorted({label for entry in entries if (label := labels.of(entry)) is not None})
    if not found:
        return (lambda _: None), "the pictures have no labels: they are not in folders named after classes"

    def reading(class_of_label: Callable[[str], int]) -> ClassOf:
        return lambda entry: None if (label := labels.of(entry)) is None else class_of_label(label)

    if all(label.isdecimal() for label in found):
        return reading(int), "labels come from folders or a table, read as class indices"
    if len(found) <= outputs:
        index = {label: i for i, label in enumerate(found)}
        return (
            reading(index.__getitem__),
            "labels are numbered in alphabetical order, because the class names of the model are unknown",
        )
    said = f"labels are not used: {len(found)} names do not fit {outputs} outputs, and class names are unknown"
    return (lambda _: None), said


def examine_folder(
    explainer: Explainer,
    entries: Sequence[Entry],
    title: str,
    class_of: ClassOf,
    *,
    kept: int,
    outputs: int,
    judge: bool,
    prefix: str = "",
) -> Examined:
    """Read the pictures of a folder.

    Args:
        explainer: the model, its transform and class names.
        entries: the pictures.
        title: name of the data set in messages.
        class_of: the class of a picture's label.
        kept: number of images to keep for the model, spread over the classes.
        outputs: number of classes of the model.
        judge: whether to run the model on the labeled pictures.
        prefix: text in front of the names of pictures.

    Raises:
        InputError: no picture can be read.
    """
    step = max(1, -(-len(entries) // MOST))
    chosen = entries[::step]
    done = Examined(Split(title), left=len(entries) - len(chosen))
    wanted = {entry.key for entry in islice(_spread(chosen, class_of), kept)}
    with decoders_quiet():
        for group in _groups(chosen, explainer, done, class_of, outputs, prefix):
            if judge:
                _judge(explainer, group, done)
            for name, image, label in group:
                if done.entries[name].key in wanted:
                    done.images.append((image, label))
    if not done.split.names:
        reason = done.unreadable[0] if done.unreadable else "nothing"
        raise InputError(f"no picture can be read ({len(chosen)} tried): {reason}")
    shape = done.images[0][0].shape if done.images else None
    done.images = [(image, label) for image, label in done.images if image.shape == shape]
    return done


Item = tuple[str, Tensor, int | None]


def _groups(
    entries: Iterable[Entry], explainer: Explainer, done: Examined, class_of: ClassOf, outputs: int, prefix: str
) -> Iterator[list[Item]]:
    group: list[Item] = []
    for entry in entries:
        name = prefix + entry.key
        try:
            with picture_of(entry) as picture:
                pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
                image = explainer.loaded.transform(picture)
        except Exception as error:  # one picture must not end the examination
            raise_interruption(error)
            done.unreadable.append(one_line(f"{name} ({error})"))
            continue
        written, label = explainer.labels.of(entry), class_of(entry)
        if written is not None:
            done.counts[written] += 1
            if label is None or not 0 <= label < outputs:
                done.unknown[written] += 1
        if 0 < int(pixels.max()) - int(pixels.min()) < _DIM:
            done.dim.append(name)
        done.entries[name] = entry
        done.split.add(image[None], [_index_or_word(written)], [name], pixels)
        group.append((name, image, label))
        if len(group) == 32:
            yield group
            group = []
    if group:
        yield group


def _index_or_word(written: str | None) -> int | str | None:
    return int(written) if written is not None and written.isdecimal() else written


def _judge(explainer: Explainer, group: Sequence[Item], done: Examined) -> None:
    """Run the model on the labeled pictures; skip images that differ in size from the first."""
    asked = [one for one in group if one[2] is not None and one[1].shape == group[0][1].shape]
    if not asked:
        return
    with torch.no_grad():
        scores = outputs_of(explainer.model(torch.stack([image for _, image, _ in asked]).to(explainer.device)))
    if scores is None or scores.ndim != 2 or scores.shape[1] < 2:
        return
    shares = scores.float().softmax(dim=1).cpu()
    for (name, _, label), row in zip(asked, shares, strict=True):
        if label is not None and 0 <= label < len(row):
            top = int(row.argmax())
            done.judged.append(Judged(name, label, top, float(row[label]), float(row[top])))


def _spread(entries: Sequence[Entry], class_of: ClassOf) -> Iterator[Entry]:
    """Yield a picture of each class in turn, until there are no more."""
    groups: dict[int | str | None, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[class_of(entry)].append(entry)
    return (entry for entry in chain.from_iterable(zip_longest(*groups.values())) if entry is not None)


def prefix_of(source: str | None) -> str:
    """Return the prefix of names that distinguishes the pictures of a folder from pictures of another folder."""
    return "" if source is None else f"{os.path.basename(os.path.normpath(source))}/"

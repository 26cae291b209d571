"""Check a data set before any model sees it: values, scales, labels, duplicates, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradcam_kit.diagnostics.checks.batches import BatchOf, main_input, pairs_of
from gradcam_kit.diagnostics.checks.duplicates import Twins, find_twins, twin_findings
from gradcam_kit.diagnostics.checks.preserving import random_states
from gradcam_kit.diagnostics.checks.scales import scale_findings, shift_findings
from gradcam_kit.diagnostics.checks.splits import Split
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.errors import InputError, OptionError, kind_of

_SHOWN = 5
_IGNORED = -100  # label that torch's losses ignore by default
_PER_CLASS = 10  # minimum mean number of samples per class for reporting empty classes


def check_data(
    loader: Any,
    test: Any = None,
    *,
    classes: int | Sequence[str] | None = None,
    batch: BatchOf | None = None,
) -> list[Finding]:
    """Check training data: values, normalization, labels, duplicates, and leaks into a test set.

    Each loader is read once; with `test`, the first batch of `loader` is read twice more. For each sample only a hash,
    a thumbnail of 32 x 32 pixels and the label are kept. Near duplicates are searched for among the first 20,000
    samples of each data set. Random states, including those of the loaders, are not changed.

    Args:
        loader: iterable of batches `(images, labels)`.
        test: iterable of batches of the test set. If given, leaks are searched for, and a training set that is not
            shuffled between epochs is reported.
        classes: the number of classes or their names; None = unknown, so that only negative labels are out of range.
        batch: function that converts an item of a loader to a pair `(images, labels)`, for loaders of mappings or
            longer tuples.

    Returns:
        Findings, the most severe first. Possible kinds: nonfinite, range, normalization, constant, label-range,
        duplicate, label-conflict, leak and shift. Samples are named by their index, such as "sample 12".

    Raises:
        InputError: a loader that does not yield pairs, or yields nothing; `classes` is not a number or names.
        ShapeError: different numbers of images and labels in a batch.
        OptionError: `classes` is less than 1 or empty.

    Example:
        >>> images = torch.randn(8, 3, 16, 16)
        >>> [finding.kind for finding in check_data([(images, torch.arange(8))], classes=7)]
        ['label-range']
    """
    count = _count(classes)
    with random_states(), generators_of(loader, test):
        train = read_split(loader, "the training set" if test is not None else "", batch)
        second = None if test is None else read_split(test, "the test set", batch, "test loader")
        found = split_findings(train, second, count)
        if test is not None and _repeats(loader, batch):
            found.append(_same_order(len(train)))
    return worst_first(found)


def read_split(loader: Any, title: str, batch: BatchOf | None, what: str = "loader") -> Split:
    """Read all batches of a loader, and return their statistics and fingerprints."""
    split = Split(title)
    short = {"the training set": "training ", "the test set": "test "}.get(title, "")
    for inputs, labels in pairs_of(loader, batch, what):
        images = main_input(inputs)
        start = len(split)
        names = [f"{short}sample {start + i}" for i in range(len(images))]
        split.add(images, _labels(labels, len(images)), names)
    return split


def split_findings(
    train: Split, test: Split | None, classes: int | None, twins: list[Twins] | None = None
) -> list[Finding]:
    """Return the findings about one or two data sets.

    Args:
        train: the only data set, or the training set.
        test: the test set; None = there is a single data set.
        classes: number of classes; None = unknown.
        twins: known duplicates; None = search for them.
    """
    splits = [train] if test is None else [train, test]
    found = []
    for split in splits:
        found += _value_findings(split)
        found += scale_findings(split)
        found += _label_findings(split, classes)
    if test is not None:
        found += shift_findings(train, test)
    pictures = [split for split in splits if split.has_pictures]
    if pictures:
        found += twin_findings(find_twins(pictures) if twins is None else twins, sum(map(len, pictures)))
    return worst_first(found)


def names_in_words(names: Sequence[str]) -> str:
    """Join the first five names, and append the number of remaining names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _value_findings(split: Split) -> list[Finding]:
    found, n = [], len(split)
    if split.broken:
        found.append(
            Finding(
                "bad",
                "nonfinite",
                "",
                f"NaN or infinite values occur in {len(split.broken)} of {n} samples: {names_in_words(split.broken)}",
                float(len(split.broken)),
                0.0,
                n,
                "Find the step that produces such values (a division by 0, a logarithm, a missing value), or "
                "leave these samples out",
                "definition",
            )
        )
    if split.constant:
        found.append(
            Finding(
                "warn",
                "constant",
                "",
                f"All values of the sample are equal in {len(split.constant)} of {n} samples: "
                f"{names_in_words(split.constant)}",
                float(len(split.constant)),
                0.0,
                n,
                "Look at the files: they may be damaged or blank, or the crop may miss the object",
                "definition",
            )
        )
    return found


def _label_findings(split: Split, classes: int | None) -> list[Finding]:
    n, where = len(split), f" in {split.title}" if split.title else ""
    labels = [label for label in split.labels if label is not None]
    if classes is not None and any(isinstance(label, float) for label in labels):
        text = f"Labels{where} are floating-point values, but class indices are integers"
        return [_range("bad", text, None, None, n, "Convert labels with .long(), or omit classes= for regression")]
    if _look_like_indices(labels):
        text = f"Labels{where} are floating-point values, but look like class indices starting at {min(labels):g}"
        advice = "Convert labels with .long() if they are classes; leave labels unchanged for regression"
        return [_range("note", text, None, None, n, advice)]
    counts = Counter(label for label in labels if isinstance(label, int) and label != _IGNORED)
    if not counts:
        return []
    low, high = min(counts), max(counts)
    if classes is not None and (low < 0 or high >= classes):
        off = " (labels that start at 1 are off by one)" if low == 1 and high == classes else ""
        text = f"Labels{where} go from {low} to {high}, but there are only classes 0 to {classes - 1}{off}"
        value = float(high if high >= classes else low)
        return [_range("bad", text, value, float(classes - 1), n, "Subtract 1 from labels that start at 1")]
    if classes is None and low < 0:
        text = f"Labels{where} go down to {low}, but class indices start at 0"
        return [_range("bad", text, float(low), 0.0, n, "Use -100 for samples that the loss should ignore")]
    found = []
    if classes is None and low == 1 and len(counts) == high > 1:
        text = f"Labels{where} go from 1 to {high}, and none is 0"
        found.append(_range("warn", text, 1.0, 0.0, n, "Subtract 1: class indices start at 0"))
    empty = [str(label) for label in range(classes or 0) if label not in counts]
    if classes is not None and empty and n >= _PER_CLASS * classes and not found:
        text = f"There are no samples of {len(empty)} of {classes} classes{where}: {names_in_words(empty)}"
        advice = "Add samples of these classes, or make the last layer smaller"
        found.append(_range("note", text, float(len(empty)), 0.0, n, advice))
    if len(counts) == 1 and n >= 2 * _PER_CLASS and classes != 1:
        found.append(
            Finding(
                "warn",
                "constant",
                "",
                f"All labels{where} are {low}",
                1.0,
                1.0,
                n,
                "Check how labels are read; if the data are sorted by class, the first samples share one label",
                "definition",
            )
        )
    return found


def _look_like_indices(labels: Sequence[Any]) -> bool:
    """Whether labels are floats like class indices: nonnegative integers that occur at least twice on average.

    Labels with fewer than three distinct values are excluded, because binary losses expect 0.0 and 1.0.
    """
    values = {label for label in labels if isinstance(label, float)}
    return 2 < len(values) <= len(labels) // 2 and all(value >= 0 and value % 1 == 0 for value in values)


def _range(level: Any, text: str, value: float | None, threshold: float | None, n: int, advice: str) -> Finding:
    return Finding(level, "label-range", "", text, value, threshold, n, advice, "definition of class indices")


def _same_order(n: int) -> Finding:
    return Finding(
        "note",
        "constant",
        "",
        "The training set begins with the same batch in two epochs",
        None,
        None,
        n,
        "Shuffle the training set: DataLoader(..., shuffle=True)",
        "definition",
    )


def _labels(labels: Any, n: int) -> list[Any]:
    """Return one label per sample if each label is a number or a string, else None for each sample."""
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if isinstance(labels, Tensor) and labels.ndim == 1:
        found: list[Any] = labels.tolist()
        return found
    if isinstance(labels, list | tuple) and len(labels) == n and all(isinstance(one, str) for one in labels):
        return list(labels)
    return [None] * n


def _count(classes: int | Sequence[str] | None) -> int | None:
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, int | Sequence):
        raise InputError(f"classes is {kind_of(classes)}; expected the number of classes, or a sequence of their names")
    count = classes if isinstance(classes, int) else len(classes)
    if count < 1:
        raise OptionError(f"classes is {classes!r}; expected at least one class")
    return count


def _repeats(loader: Iterable[Any], batch: BatchOf | None) -> bool:
    """Whether a loader begins two epochs with the same batch; False for iterators and sequences of batches."""
    if isinstance(loader, Iterator | Sequence):
        return False
    first, second = (main_input(next(pairs_of(loader, batch))[0]) for _ in range(2))
    return len(first) > 1 and first.shape == second.shape and bool(torch.equal(first, second))


@contextmanager
def generators_of(*loaders: object) -> Iterator[None]:
    """Restore the random generators of loaders and of their samplers when the block ends."""
    holders = [(loader, getattr(loader, "sampler", None)) for loader in loaders]
    found = [getattr(one, "generator", None) for pair in holders for one in pair]
    states = [(one, one.get_state()) for one in found if isinstance(one, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)

"""Map labels of pictures to classes of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from gradcam_kit.errors import UnknownNameError, did_you_mean
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.targets.names import normalized

_EXAMPLES = 3


@dataclass(frozen=True)
class Labels:
    """Maps labels to the model's classes; `names` is None for a model whose class names are unknown."""

    names: Sequence[str] | None
    _indices: dict[str, int] = field(init=False, repr=False)
    _counts: Counter[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = [normalized(name) for name in self.names or ()]
        object.__setattr__(self, "_indices", {name: index for index, name in enumerate(names)})
        object.__setattr__(self, "_counts", Counter(names))

    def of(self, entry: Entry) -> str | None:
        """Return the label of a picture from its table, else the name of its innermost folder that names a class.

        If no folder names a class, the innermost one is the label, so that the user sees the unmatched name.
        """
        if entry.label is not None or not entry.folders:
            return entry.label
        known = (folder for folder in reversed(entry.folders) if normalized(folder) in self._counts)
        return next(known, entry.folders[-1])

    def index(self, entry: Entry) -> int | None:
        """Return the index of the class that a picture's label names; None if it names no class or several classes.

        A label may be the number of a class if it comes from a table, or if the model's class names are unknown.
        """
        label = self.of(entry)
        if label is None:
            return None
        name = normalized(label)
        if name in self._counts:
            return self._indices[name] if self._counts[name] == 1 else None
        is_number = label.isdecimal() and label.isascii() and len(label) < 10
        return int(label) if is_number and (entry.label is not None or not self.names) else None

    def unknown(self, entries: Iterable[Entry]) -> str | None:
        """Return a note that accuracy leaves out labels that match no class; None if every label matches one."""
        unknown, labeled, examples = 0, 0, dict[str, None]()
        for _, group in groupby(entries, _place):  # sorted by key, so pictures of a folder are mostly adjacent
            for count, entry in enumerate(group, 1):  # noqa: B007
                pass
            label, index = self.of(entry), self.index(entry)
            if label is None:
                continue
            labeled += count
            if index is None or (self.names is not None and index >= len(self.names)):
                unknown += count
                if len(examples) < _EXAMPLES:
                    examples[label] = None
        if not unknown:
            return None
        named = ", ".join(f"{label!r}{did_you_mean(label, self._counts)}" for label in examples)
        return f"accuracy leaves out {unknown} of {labeled} labels, which match no class of the model: {named}"

    def require(self, entry: Entry) -> int:
        """Return the index of the class that a picture's label names, for targets that are labels.

        Raises:
            UnknownNameError: the label is missing, or names no class or several classes.
        """
        index = self.index(entry)
        if index is None:
            label = self.of(entry)
            if label is None:
                raise UnknownNameError(
                    "the picture has no label; add a column 'label', or put it in a folder named after its class"
                )
            count = self._counts[normalized(label)]
            named = f"is the name of {count} classes" if count else "is not a class of the model"
            raise UnknownNameError(f"the label {label!r} {named}{did_you_mean(label, self._counts)}")
        return index


def _place(entry: Entry) -> tuple[str | None, str]:
    """Return the parts of a picture that determine its label."""
    return entry.label, entry.key.rpartition("/")[0]

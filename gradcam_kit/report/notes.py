"""Texts of a run's report: warnings, notes, failures, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from gradcam_kit import errors
from gradcam_kit.report.figures import Figures

_OURS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
_RANDOM = "has random weights"  # phrase in the note about a model without trained weights


def in_words(error: str) -> str:
    """Return an error of a row without the name of the exception class, if the message is clear without it.

    Example:
        >>> in_words("PictureError: cannot read the picture: the file is empty")
        'cannot read the picture: the file is empty'
        >>> in_words("KeyError: 'x'")
        "KeyError: 'x'"
    """
    kind, _, message = error.partition(": ")
    return message if kind in _OURS and message else error


def failures(figures: Figures) -> list[tuple[str, int]]:
    """Return the reasons of failures in words, the most frequent first."""
    found: Counter[str] = Counter()
    for reason, count in figures.reasons.items():
        found[in_words(reason)] += count
    return found.most_common()


def warnings(manifest: Mapping[str, Any], figures: Figures) -> list[str]:
    """Return the reasons not to trust a page yet: random weights, or an unfinished run."""
    found = []
    if manifest["weights"] == "random":
        found.append("The weights are random, so the heatmaps are meaningless.")
    if figures.pictures < manifest["pictures"]:
        found.append(
            f"The run is not finished: {figures.pictures:,} of {manifest['pictures']:,} pictures are done. "
            "Run the same command to resume."
        )
    return found


def notes(manifest: Mapping[str, Any]) -> list[str]:
    """Return the notes that the run recorded about its model, except the note about random weights."""
    said = manifest["about"].get("notes")
    return [note for note in _texts(said) if _RANDOM not in note]


def command(manifest: Mapping[str, Any]) -> str | None:
    """Return the command of the run, if known."""
    asked = manifest["about"].get("command")
    return asked if isinstance(asked, str) else None


def versions(manifest: Mapping[str, Any]) -> str:
    """Return the package versions that produced the rows, such as "gradcam-kit 1.0, torch 2.6"."""
    found = {name.replace("_", "-"): version for name, version in manifest.get("versions", {}).items()}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _texts(value: Any) -> Iterable[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []

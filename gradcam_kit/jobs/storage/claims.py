"""Keep a record of the files that a command writes into a folder that may hold foreign files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.storage.folders import Folder


def claim(folder: Folder, notes: str, names: Iterable[str], overwrite: bool) -> None:
    """Record files that are about to be written; refuse to replace foreign files.

    Args:
        folder: the output folder, which need not exist.
        notes: name of the record file.
        names: names of the files.
        overwrite: also replace foreign files.

    Raises:
        OptionError: a foreign file has the name of one of the files or of a needed folder, or the record cannot be
            written. In these cases, nothing is written.
    """
    names = list(dict.fromkeys(names))
    try:
        own = _noted(folder, notes)
        for parent in {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}:
            if folder.blocks(parent):
                raise OptionError(
                    f"{folder.root}/{parent} exists, but a folder of this name is needed; choose another folder"
                )
        if not overwrite:
            found = next((name for name in [*names, notes] if name not in own and folder.holds(name)), None)
            if found is not None:
                raise OptionError(
                    f"{folder.root}/{found} already exists, and this command did not write it; choose "
                    "another folder, or replace it with --overwrite"
                )
        folder.write(notes, json.dumps([notes, *sorted({*own, *names} - {notes})]).encode("utf-8", "backslashreplace"))
    except OSError as error:
        place = error.filename or f"{folder.root}/{notes}"
        raise OptionError(f"{place!r} cannot be written: {error.strerror or error}; choose another folder") from error


def _noted(folder: Folder, notes: str) -> set[str]:
    """Return the recorded files; an empty set if this package did not write the record."""
    try:
        found = json.loads(folder.read(notes) or b"[]")
    except (ValueError, RecursionError):
        return set()
    is_ours = isinstance(found, list) and found[:1] == [notes] and all(isinstance(name, str) for name in found)
    return set(found) if is_ours else set()

"""Folders in which a command writes files beside the files of others: it notes which are its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.storage.folders import Folder


def claim(folder: Folder, notes: str, names: Iterable[str], overwrite: bool) -> None:
    """Note that files are about to be written, unless they would replace files of others.

    Args:
        folder: where they go; it need not exist.
        notes: the name of the file with the notes.
        names: of the files.
        overwrite: replace the files of others too.

    Raises:
        OptionError: a file is there that the notes do not name; nothing is written then.
    """
    names = list(dict.fromkeys(names))
    try:
        own = _noted(folder, notes)
        for parent in {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}:
            if folder.blocks(parent):
                raise OptionError(f"{folder.root}/{parent} is in the way, as a folder is needed; choose another folder")
        if not overwrite:
            found = next((name for name in [*names, notes] if name not in own and folder.holds(name)), None)
            if found is not None:
                raise OptionError(
                    f"{folder.root}/{found} is there already, and this command did not write it; choose another "
                    "folder, or replace it: --overwrite"
                )
        folder.write(notes, json.dumps([notes, *sorted({*own, *names} - {notes})]).encode("utf-8", "backslashreplace"))
    except OSError as error:
        place = error.filename or f"{folder.root}/{notes}"
        raise OptionError(f"{place!r} cannot be written: {error.strerror or error}; choose another folder") from error


def _noted(folder: Folder, notes: str) -> set[str]:
    """Return the files that were noted before; none if the notes are not ours."""
    try:
        found = json.loads(folder.read(notes) or b"[]")
    except (ValueError, RecursionError):
        return set()
    is_ours = isinstance(found, list) and found[:1] == [notes] and all(isinstance(name, str) for name in found)
    return set(found) if is_ours else set()

"""From SOURCE to the sorted list of pictures of a run; nothing is opened here."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gradcam_kit.errors import InputError

PICTURE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)
"""What counts as a picture in a folder or a glob; a single file or a line of a list is taken whatever its name."""

LIST_SUFFIXES = (".txt", ".lst", ".list")


class Entry(NamedTuple):
    """One picture: `key` names it in rows and overlays, `path` opens it."""

    key: str
    path: str

    @property
    def label(self) -> str | None:
        """The name of the folder that the picture is in, if that folder is a part of the key."""
        return PurePosixPath(self.key).parent.name or None


def index_pictures(source: str | Path, exclude: Path) -> list[Entry]:
    """List the pictures of a file, a folder (recursive), a glob or a list file, sorted by key.

    Keys are POSIX paths relative to the folder, to the part of the glob before its first wildcard, or to the folder of
    the list file (to the nearest common folder, if some pictures lie elsewhere). Bytes of a name that are not UTF-8 are
    written as `\\xff`. Hidden files and folders of a folder, and whatever lies in `exclude`, are left out.

    Raises:
        InputError: no such file or folder, or no picture in it.
    """
    text = os.fspath(source)
    path = Path(text)
    if path.is_dir():
        root, found = text, _walk(text, ())
    elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        root, found = os.fspath(path.parent), _listed(path)
    elif path.is_file():
        root, found = os.path.dirname(text), iter([text])
    elif glob.has_magic(text):
        root, found = _before_wildcard(text), filter(_is_picture, glob.iglob(text, recursive=True))
    else:
        raise InputError(f"there is no file or folder {text!r}; SOURCE is a picture, a folder, a glob or a list file")
    files = [os.path.abspath(file) for file in _outside(found, exclude)]
    if not files:
        raise InputError(f"{text!r} holds no pictures; known are files that end in {' '.join(PICTURE_SUFFIXES)}")
    root = os.path.abspath(root)
    if not all(file.startswith(os.path.join(root, "")) for file in files):
        root = os.path.commonpath(os.path.dirname(file) for file in files)
    return sorted({Entry(_key(os.path.relpath(file, root)), file) for file in files})


def _walk(folder: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """All pictures below a folder, through symbolic links but never around in a circle."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    try:
        with os.scandir(folder) as children:
            visible = [child for child in children if not child.name.startswith(".")]
    except OSError as error:
        raise InputError(f"the folder {folder!r} cannot be listed: {error.strerror}") from error
    for child in visible:
        if child.is_dir():
            yield from _walk(child.path, (*ancestors, identity))
        elif _is_picture(child.path):
            yield child.path


def _listed(path: Path) -> Iterator[str]:
    """The pictures named in a list file, one on a line; a relative path starts at the folder of the list."""
    for line in os.fsdecode(path.read_bytes()).splitlines():
        if line.strip():
            yield os.path.join(path.parent, line.strip())


def _before_wildcard(pattern: str) -> str:
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    return root


def _is_picture(path: str) -> bool:
    """Whether a path is named like a picture; folders and pipes are none, a broken link is one that will fail."""
    return path.lower().endswith(PICTURE_SUFFIXES) and (os.path.isfile(path) or os.path.islink(path))


def _outside(files: Iterable[str], exclude: Path) -> Iterator[str]:
    excluded = os.path.realpath(exclude)
    known: dict[str, bool] = {}
    for file in files:
        folder = os.path.dirname(file)
        if folder not in known:
            known[folder] = os.path.commonpath([os.path.realpath(folder or "."), excluded]) != excluded
        if known[folder]:
            yield file


def _key(relative: str) -> str:
    return os.fsencode(relative.replace(os.sep, "/")).decode("utf-8", "backslashreplace")

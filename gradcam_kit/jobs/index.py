"""From SOURCE to the pictures of a run; they stream by, and none of them is opened here."""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gradcam_kit.errors import InputError
from gradcam_kit.jobs.files import is_remote, remote
from gradcam_kit.jobs.tables import listed_rows

PICTURE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dds", ".dib", ".gif", ".hdr", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe"),
    *(".jpeg", ".jpg", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras"),
    *(".sgi", ".tga", ".tif", ".tiff", ".webp", ".xbm", ".xpm"),
)
"""What counts as a picture in a folder or a glob; a single file or a line of a list is taken whatever its name."""

LIST_SUFFIXES = (".txt", ".lst", ".list")
TABLE_SUFFIXES = (".csv", ".parquet")
OWN_FOLDERS = ("shards", "overlays", "thumbnails", "metrics", "report", "export")  # of a run, in its folder
KINDS = "a picture, a folder, a glob, a list file (.txt) or a table (.csv, .parquet) with a column 'path'"


class Entry(NamedTuple):
    """One picture: `key` names it in rows and overlays, `path` opens it, `label` is its class if a table says so."""

    key: str
    path: str
    label: str | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the key, the outermost first."""
        return PurePosixPath(self.key).parts[:-1]


@dataclass
class LeftOut:
    """What lies below SOURCE and is no input; complete when the pictures have streamed by.

    Attributes:
        endings: how many files there are of each ending that names no picture.
        runs: folders of earlier runs.
        repeated: pictures that were named before.
        nameless: rows of a table that name no picture.
    """

    endings: Counter[str] = field(default_factory=Counter)
    runs: list[str] = field(default_factory=list)
    repeated: int = 0
    nameless: int = 0

    def lines(self) -> list[str]:
        """The same in words."""
        said = []
        if self.endings:
            counted = ", ".join(
                f"{count} {ending or 'without ending'}" for ending, count in self.endings.most_common(8)
            )
            said.append(f"left out {sum(self.endings.values())} files that are not named like pictures: {counted}")
        if self.runs:
            more = f" and {len(self.runs) - 3} more" if len(self.runs) > 3 else ""
            said.append(f"left out the folders of earlier runs: {', '.join(self.runs[:3])}{more}")
        if self.repeated:
            said.append(f"left out {self.repeated} repetitions of pictures that are named more than once")
        if self.nameless:
            said.append(f"left out {self.nameless} rows of the table that have no path")
        return said


def find_pictures(source: str, out: str, left_out: LeftOut) -> Iterator[Entry]:
    """The pictures of a file, folder (recursive), glob, list file or table, in any order.

    Keys are POSIX paths relative to the folder, to the part of the glob before its first wildcard, or to the folder of
    the list file or table (to the nearest common folder, if some pictures lie elsewhere). Bytes of a name that are not
    UTF-8 are written as `\\xff`. Of folders and globs, hidden files and folders are left out, and so are the folders of
    runs: `out` and those that lie below the source.

    Raises:
        InputError: no such file or folder, or a table without paths.
    """
    if is_remote(source):
        yield from _remote_pictures(source, out, left_out)
        return
    path = Path(source)
    if path.is_dir():
        if os.path.realpath(source) == os.path.realpath(out):
            raise InputError(f"--out is SOURCE itself, {source!r}; choose a folder in it or beside it")
        root, found = source, _Walk(source, out, left_out).pictures()
    elif path.is_file() and path.suffix.lower() in (*LIST_SUFFIXES, *TABLE_SUFFIXES):
        yield from _listed(source, left_out)
        return
    elif path.is_file():
        root, found = os.path.dirname(source), iter([source])
    elif glob.has_magic(source):
        root = _before_wildcard(source)
        found = _Walk(root, out, left_out).matches(glob.iglob(source, recursive=True))
    else:
        raise InputError(f"there is no file or folder {source!r}; SOURCE is {KINDS}")
    root = os.path.join(os.path.abspath(root), "")
    for file in map(os.path.abspath, found):
        yield Entry(_key(file[len(root) :]), file)


def index_pictures(source: str, out: str) -> list[Entry]:
    """All pictures at once, sorted by key, without repetitions; for sources that fit into memory.

    Raises:
        InputError: no pictures.
    """
    found = {entry.key: entry for entry in find_pictures(source, out, LeftOut())}
    if not found:
        raise no_pictures(source)
    return [found[key] for key in sorted(found)]


def no_pictures(source: str, left_out: LeftOut | None = None) -> InputError:
    """The error of a source that holds none."""
    said = "".join(f"; {line}" for line in (left_out.lines() if left_out else ()))
    return InputError(f"{source!r} holds no pictures{said}; known are files that end in {' '.join(PICTURE_SUFFIXES)}")


def is_run(folder: str) -> bool:
    """Whether a folder is that of a run."""
    return os.path.isfile(os.path.join(folder, "run.json")) and os.path.isdir(os.path.join(folder, "shards"))


@dataclass
class _Walk:
    """Decides what is input below a folder."""

    root: str
    out: str
    left_out: LeftOut

    def __post_init__(self) -> None:
        out, root = os.path.realpath(self.out), os.path.realpath(self.root or ".")
        # Where pictures lie in the folder of their run, only what the run wrote is no input.
        around = os.path.commonpath([out, root]) == out
        self._own = {os.path.join(out, name) for name in OWN_FOLDERS} if around else {out}
        self._verdicts: dict[str, bool] = {}

    def pictures(self) -> Iterator[str]:
        """All below the root, through symbolic links but never around in a circle."""
        yield from self._below(self.root, ())

    def matches(self, paths: Iterable[str]) -> Iterator[str]:
        """Those of some paths below the root."""
        for path in paths:
            if not os.path.isdir(path) and self._enters_all(os.path.dirname(path)) and self._takes(path):
                yield path

    def _below(self, folder: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors or (ancestors and not self._enters(folder)):
            return
        folders = []
        try:
            with os.scandir(folder) as children:
                for child in children:
                    if child.name.startswith("."):
                        continue
                    if _leads_nowhere(child):
                        continue
                    if child.is_dir():
                        folders.append(child.path)
                    elif self._takes(child.path):
                        yield child.path
        except OSError as error:
            raise InputError(f"the folder {folder!r} cannot be listed: {error.strerror}") from error
        for path in folders:
            yield from self._below(path, (*ancestors, identity))

    def _takes(self, path: str) -> bool:
        """Whether a path is named like a picture; pipes are none, a broken link is one that will fail."""
        ending = os.path.splitext(path)[1].lower()
        if ending in PICTURE_SUFFIXES:
            return os.path.isfile(path) or os.path.islink(path)
        self.left_out.endings[_key(ending)] += 1
        return False

    def _enters(self, folder: str) -> bool:
        if os.path.realpath(folder) in self._own:
            return False
        if is_run(folder):
            self.left_out.runs.append(_key(os.path.relpath(folder, self.root or ".")))
            return False
        return True

    def _enters_all(self, folder: str) -> bool:
        """Whether a folder and all between it and the root are input."""
        if os.path.abspath(folder) == os.path.abspath(self.root) or len(folder) <= len(self.root):
            return True
        if folder not in self._verdicts:
            self._verdicts[folder] = self._enters_all(os.path.dirname(folder)) and self._enters(folder)
        return self._verdicts[folder]


def _listed(source: str, left_out: LeftOut) -> Iterator[Entry]:
    """The pictures that a list file or table names; a relative path starts at its folder.

    Raises:
        InputError: pictures in different storages, so that no folder is common to them.
    """
    root = os.path.dirname(os.path.abspath(source)).rstrip("/")
    parent = root or "/"
    if any(not path.startswith(root + "/") for path, _ in _lines(source, parent, LeftOut())):
        common: list[str] | None = None  # some lie elsewhere, so the common folder is that of the pictures alone
        for path, _ in _lines(source, parent, LeftOut()):
            folder = path.split("/")[:-1]
            pairs = zip(folder if common is None else common, folder, strict=False)
            common = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
            if (is_remote(path) and len(common) < 3) or not common:
                raise InputError(
                    f"the pictures that {source!r} names have no folder or bucket in common; use a list each"
                )
        root = "/".join(common or [])
    for path, label in _lines(source, parent, left_out):
        yield Entry(_key(path[len(root) + 1 :]), path, label)


def _lines(source: str, parent: str, left_out: LeftOut) -> Iterator[tuple[str, str | None]]:
    for path, label in listed_rows(source):
        if path:
            yield (path if is_remote(path) else os.path.abspath(os.path.join(parent, path))), label
        else:
            left_out.nameless += 1


def _remote_pictures(source: str, out: str, left_out: LeftOut) -> Iterator[Entry]:
    """The same for remote storage; lists and tables are files of this machine that name remote pictures."""
    system, root = remote(source)
    out = remote(out)[1].rstrip("/") + "/" if is_remote(out) else "\0"
    if glob.has_magic(source):
        found: Iterable[str] = system.glob(root)
        root = _before_wildcard(root)
    elif system.isdir(root):
        found = (f"{folder}/{name}" for folder, _, names in system.walk(root) for name in names)
    elif system.isfile(root):
        root, found = root.rpartition("/")[0], [root]
    else:
        raise InputError(f"there is no file or folder {source!r}; SOURCE is {KINDS}")
    root = root.rstrip("/") + "/"
    for path in found:
        key = path[len(root) :] if path.startswith(root) else path
        if path.startswith(out) or any(part.startswith(".") for part in key.split("/")):
            continue
        if os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES:
            yield Entry(key, system.unstrip_protocol(path))
        else:
            left_out.endings[os.path.splitext(path)[1].lower()] += 1


def _leads_nowhere(child: os.DirEntry[str]) -> bool:
    """Whether it is a symbolic link around in a circle."""
    try:
        child.is_dir()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _before_wildcard(pattern: str) -> str:
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    return root


def _key(relative: str) -> str:
    name = os.fsencode(relative.replace(os.sep, "/"))
    try:
        if "\\x" not in (key := name.decode()):
            return key
    except UnicodeDecodeError:
        pass
    return name.replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace")  # so no two names share a key

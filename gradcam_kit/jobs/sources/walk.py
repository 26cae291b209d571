"""Find all pictures below a folder, or the pictures that match a glob."""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from gradcam_kit.errors import InputError, raise_interruption

PICTURE_SUFFIXES = (
    *(".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".ftc", ".ftu"),
    *(".gif", ".hdr", ".icb", ".icns", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
    *(".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pam", ".pbm", ".pcx", ".pfm", ".pgm", ".pic", ".png"),
    *(".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".sr", ".tga", ".tif"),
    *(".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm"),
)
"""Extensions of pictures in a folder or a glob; a single file or a line of a list may have any name.

Some formats of PIL or OpenCV are left out: programs and drawings (.eps, .ps, .emf, .wmf); formats that the libraries
recognize but cannot read (.bufr, .grib, .h5, .hdf, .mpg, .mpeg, and .exr in most builds); measurements without a white
level (.fit, .fits); extensions that usually mean something else (.pcd for point clouds); films, brushes and notes
(.flc, .fli, .gbr, .iim); and formats that PIL will drop (.im).
"""

_Child = os.DirEntry[str] | Path

# Subfolders that a run, its report and its exports write into the folder of the run.
OWN_FOLDERS = (
    "shards",
    "overlays",
    "thumbnails",
    "metrics",
    "report",
    "export",
)


@dataclass
class Skipped:
    """Files and folders below SOURCE that are not input; complete once all pictures have been listed.

    Attributes:
        endings: number of files that are not pictures, by extension.
        runs: folders of earlier runs.
        closed: folders without read permission.
        repeated: number of repetitions of pictures that were already named.
        relabeled: number of repetitions with a label that differs from the first.
        first_relabeled: description of the first such repetition, with both labels.
        nameless: number of table rows without a path.
    """

    endings: Counter[str] = field(default_factory=Counter)
    runs: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    repeated: int = 0
    relabeled: int = 0
    first_relabeled: str = ""
    nameless: int = 0

    def repeat(self, key: str, kept: str | None, label: str | None) -> None:
        """Count a repeated picture."""
        self.repeated += 1
        if label is not None and label != kept:
            self.relabeled += 1
            self.first_relabeled = self.first_relabeled or f"{key} is {kept!r} and not {label!r}"

    def lines(self) -> list[str]:
        """Return notes on what was left out."""
        said = []
        if self.endings:
            counted = ", ".join(
                f"{count} {ending or 'without extension'}" for ending, count in self.endings.most_common(8)
            )
            count = sum(self.endings.values())
            files = "file" if count == 1 else "files"
            said.append(f"skipped {count} {files} without an image extension: {counted}")
        if self.runs:
            said.append(f"left out the folders of earlier runs: {_first(self.runs)}")
        if self.closed:
            said.append(f"left out folders without read permission: {_first(self.closed)}")
        if self.repeated:
            said.append(f"left out repetitions of pictures: {self.repeated}")
        if self.relabeled:
            said.append(f"ignored different labels in these repetitions ({self.relabeled}): {self.first_relabeled}")
        if self.nameless:
            said.append(f"left out table rows without a path: {self.nameless}")
        return said


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_run(folder: str) -> bool:
    """Whether a folder holds a run."""
    return os.path.isfile(os.path.join(folder, "run.json")) and os.path.isdir(os.path.join(folder, "shards"))


@dataclass
class Walk:
    """Decides which files below a folder are input."""

    root: str
    out: str
    left_out: Skipped

    def __post_init__(self) -> None:
        out, root = os.path.realpath(self.out), os.path.realpath(self.root)
        # If pictures are inside the folder of their run, skip only the files that the run wrote.
        around = os.path.commonpath([out, root]) == out
        self._own = {os.path.join(out, name) for name in OWN_FOLDERS} if around else {out}

    def matches(self, pattern: Sequence[str]) -> Iterator[str]:
        """Yield the pictures whose path below the root matches; follow symbolic links, but not cycles.

        Args:
            pattern: one glob for each folder of the path and for the file; `**` matches any number of folders,
                and `..` is the parent.

        Raises:
            InputError: the root cannot be listed; folders below it without read permission are left out.
        """
        pattern = [*(part for part in pattern[:-1] if part not in ("", ".")), *pattern[-1:]]
        waiting = [(self.root, _also_empty(pattern, {0}), frozenset[tuple[int, int]]())]
        risen = set()  # folders reached by `..`, to visit a parent of many folders only once
        while waiting:
            folder, positions, above = waiting.pop()
            parts = {position: pattern[position] for position in positions if position < len(pattern)}
            for position in [position for position, part in parts.items() if part == ".."]:
                del parts[position]
                state = self._parent(folder), _also_empty(pattern, {position + 1})
                if state not in risen:
                    risen.add(state)
                    waiting.append((*state, frozenset()))
            try:
                status = os.stat(folder)
                identity = (status.st_dev, status.st_ino)
                if not parts or identity in above or (folder != self.root and not self._enters(folder)):
                    continue
                with _children(folder, set(parts.values())) as children:
                    for child in children:
                        reached = _reached(pattern, parts, child.name)
                        if not reached or (child.is_symlink() and _leads_nowhere(child)):
                            continue
                        if _is_folder(child):
                            if min(reached) < len(pattern):
                                waiting.append((os.fspath(child), reached, above | {identity}))
                        elif len(pattern) in reached and self._takes(child):
                            yield os.fspath(child)
            except (FileNotFoundError, NotADirectoryError):  # the folder vanished, or the pattern names no folder
                continue
            except OSError as error:
                raise_interruption(error)
                if folder == self.root or not isinstance(error, PermissionError):
                    raise InputError(f"the folder {folder!r} cannot be listed: {error.strerror}") from error
                self.left_out.closed.append(key_of(os.path.relpath(folder, self.root)))

    def _parent(self, folder: str) -> str:
        """Return the path of the parent folder, without `..` if this certainly leads to the same folder."""
        if folder == self.root or folder.endswith(os.sep + "..") or os.path.islink(folder):
            return os.path.join(folder, "..")
        return os.path.dirname(folder)

    def _takes(self, child: _Child) -> bool:
        """Whether an entry is a picture by its extension; broken links are accepted and fail later, pipes are not."""
        ending = os.path.splitext(child.name)[1].lower()
        if ending in PICTURE_SUFFIXES:
            return child.is_symlink() or child.is_file()
        self.left_out.endings[key_of(ending)] += 1
        return False

    def _enters(self, folder: str) -> bool:
        if os.path.realpath(folder) in self._own:
            return False
        if is_run(folder):
            self.left_out.runs.append(key_of(os.path.relpath(folder, self.root)))
            return False
        return True


def key_of(relative: str) -> str:
    """Return a relative path as a key of rows: with POSIX separators, and as valid text even if it is not UTF-8."""
    name = os.fsencode(relative.replace(os.sep, "/"))
    try:
        if "\\x" not in (key := name.decode()):
            return key
    except UnicodeDecodeError:
        pass
    return name.replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace")  # this way no two names share a key


def _reached(pattern: Sequence[str], positions: Iterable[int], name: str) -> frozenset[int]:
    """Return the positions in the pattern after matching a name; `**` may lead to several."""
    hidden = name.startswith(".")
    found = set()
    for position in positions:
        part = pattern[position] if position < len(pattern) else ""
        if part == "**" and not hidden:
            found.add(position)
        elif fnmatchcase(name, part) and (not hidden or part.startswith(".")):
            found.add(position + 1)
    return _also_empty(pattern, found)


def _also_empty(pattern: Sequence[str], positions: Iterable[int]) -> frozenset[int]:
    """Return the positions, plus the position after each `**`, which may match no folder at all."""
    found = set(positions)
    for position, part in enumerate(pattern):
        if part == "**" and position in found:
            found.add(position + 1)
    return frozenset(found)


def _children(folder: str, parts: Collection[str]) -> AbstractContextManager[Iterable[_Child]]:
    """Return the entries of a folder that may match parts of a pattern; parts without wildcards need no listing."""
    return os.scandir(folder) if any(map(glob.has_magic, parts)) else nullcontext(_named(folder, parts))


def _named(folder: str, parts: Collection[str]) -> Iterator[_Child]:
    for path in (Path(folder, part) for part in parts):
        try:
            path.lstat()
        except FileNotFoundError:
            continue
        yield path


def _is_folder(child: _Child) -> bool:
    """Whether an entry is a folder, or a link to a folder that can be reached."""
    try:
        return child.is_dir()
    except PermissionError:
        return False


def _leads_nowhere(child: _Child) -> bool:
    """Whether a symbolic link leads only to itself, possibly through other links."""
    try:
        child.stat()
    except OSError as error:
        raise_interruption(error)
        return error.errno == errno.ELOOP
    return False

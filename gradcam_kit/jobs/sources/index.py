"""List the pictures of SOURCE as a stream, without opening them."""

from __future__ import annotations

import glob
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from gradcam_kit.errors import GradCamKitError, InputError, raise_interruption
from gradcam_kit.jobs.sources.tables import LIST_SUFFIXES, TABLE_SUFFIXES, listed_rows
from gradcam_kit.jobs.sources.text import not_utf8
from gradcam_kit.jobs.sources.walk import PICTURE_SUFFIXES, Skipped, Walk, key_of
from gradcam_kit.jobs.storage.addresses import check_address, is_remote, remote, scheme, unreachable
from gradcam_kit.targets.names import BLANKS

_NAMING = (*LIST_SUFFIXES, *TABLE_SUFFIXES)  # extensions of files that name pictures
KINDS = "a picture, a folder, a glob, a list file (.txt) or a table (.csv, .tsv, .parquet) with a column 'path'"


class Entry(NamedTuple):
    """A picture: its `key` in rows and overlays, the `path` that opens it, and its `label` if a table has one."""

    key: str
    path: str
    label: str | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the key, the outermost first."""
        return PurePosixPath(self.key).parts[:-1]


def find_pictures(source: str, out: str, left_out: Skipped) -> Iterator[Entry]:
    """Yield the pictures of a file, folder (recursive), glob, list file or table, in any order.

    Keys are POSIX paths relative to the folder, to the part of the glob before its first wildcard, or to the folder of
    the list file or table (to the nearest common folder, if some pictures are elsewhere). Bytes of a name that are not
    UTF-8 are written as `\\xff`. In folders and globs, hidden files and folders are skipped, and so is `out`. The
    folders of other runs are skipped as well, except by remote globs. On this machine, symbolic links are followed
    unless they form a cycle.
    `left_out` collects what was skipped.

    Raises:
        InputError: the source does not exist, or is a table without a column of paths.
    """
    if is_remote(source):
        yield from _remote_pictures(source, out, left_out)
        return
    if os.path.isdir(source):
        if os.path.realpath(source) == os.path.realpath(out):
            raise InputError(f"--out is SOURCE itself, {source!r}; choose a folder inside or next to it")
        root = _absolute(source)
        found = Walk(root, out, left_out).matches(["**"])
    elif os.path.isfile(source) and source.lower().endswith(_NAMING):
        yield from _listed(source, left_out)
        return
    elif os.path.isfile(source):
        root = _absolute(os.path.dirname(source))
        found = iter([os.path.join(root, os.path.basename(source))])
    elif glob.has_magic(source):
        before = _before_wildcard(source)
        root = _absolute(before)
        found = Walk(root, out, left_out).matches(source[len(before) :].lstrip("/").split("/"))
    else:
        raise InputError(f"there is no file or folder {source!r}; SOURCE is {KINDS}")
    start = len(os.path.join(root, ""))
    for file in found:
        yield Entry(key_of(file[start:]), file)


def index_pictures(source: str, out: str) -> list[Entry]:
    """Return all pictures as a list, sorted by key, without duplicates; for sources that fit into memory.

    Raises:
        InputError: the source holds no pictures.
    """
    found = {entry.key: entry for entry in find_pictures(source, out, Skipped())}
    if not found:
        raise no_pictures(source)
    return [found[key] for key in sorted(found)]


def no_pictures(source: str, left_out: Skipped | None = None) -> InputError:
    """Return the error of a source without pictures."""
    said = "".join(f"; {line}" for line in (left_out.lines() if left_out else ()))
    return InputError(f"{source!r} holds no pictures{said}; supported extensions are {' '.join(PICTURE_SUFFIXES)}")


def _listed(source: str, left_out: Skipped) -> Iterator[Entry]:
    """Yield the pictures that a list file or table names, with relative paths resolved from its folder.

    Raises:
        InputError: the pictures have no common folder or bucket.
    """
    parent = source.rpartition("/")[0] if is_remote(source) else os.path.dirname(os.path.abspath(source))
    root = "" if parent == "/" else parent
    if any(not path.startswith(root + "/") for path, _ in _lines(source, parent, Skipped())):
        common: list[str] | None = None  # some pictures are outside the list's folder
        for path, _ in _lines(source, parent, Skipped()):
            folder = path.split("/")[:-1]
            pairs = zip(folder if common is None else common, folder, strict=False)
            common = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
            if (is_remote(path) and len(common) < 3) or not common:
                raise InputError(
                    f"the pictures that {source!r} names have no folder or bucket in common; make one list per storage"
                )
        root = "/".join(common or [])
    for path, label in _lines(source, parent, left_out):
        yield Entry(key_of(path[len(root) + 1 :]), path, label)


def _lines(source: str, parent: str, left_out: Skipped) -> Iterator[tuple[str, str | None]]:
    own = scheme(source) if is_remote(source) else None
    for path, label in listed_rows(source):
        if path:
            resolved = _as_on_disk(source, parent, path)
            if is_remote(resolved):
                _check_listed(source, resolved, own)
            yield resolved, label
        else:
            left_out.nameless += 1


def _as_on_disk(source: str, parent: str, path: str) -> str:
    """Return a path as its file is named on disk, because a list may add blanks or use another Unicode form.

    Raises:
        InputError: the path has bytes that are not UTF-8, as in a list with another encoding, and names no file.
    """
    place = _resolved(parent, path)
    plain = path.strip(BLANKS)
    if (path.isascii() and path == plain) or (not is_remote(place) and os.path.exists(place)):
        return place
    if any("\udc80" <= sign <= "\udcff" for sign in path):
        raise not_utf8(source, f"the path {path!a}, which names no file")
    forms = [plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    places = [_resolved(parent, form) for form in forms if form]
    return next(
        (other for other in places if not is_remote(other) and os.path.exists(other)), places[0] if places else place
    )


def _check_listed(source: str, path: str, own: str | None) -> None:
    """Refuse an address that a list, which may be untrusted, must not name; `own` is the list's own kind of storage.

    Raises:
        InputError: the address must not be named in a list.
    """
    try:
        check_address(path, own or "file")
    except InputError as error:
        raise InputError(f"{source!r} names a picture that a list must not name: {error}") from error


def _resolved(parent: str, path: str) -> str:
    """Resolve a path from a list file against the folder of the list."""
    if is_remote(path):
        return path
    joined = f"{parent}/{path}"  # at the root of a storage, the parent has only one slash, as in `memory:/`
    if not is_remote(joined) or os.path.isabs(path):
        return os.path.normpath(os.path.join(parent, path))
    scheme, _, inner = joined.partition("://")
    return f"{scheme}://{posixpath.normpath(inner)}"


def _remote_pictures(source: str, out: str, left_out: Skipped) -> Iterator[Entry]:
    """Yield the pictures of a source on remote storage."""
    system, root = remote(source)
    out = remote(out)[1].rstrip("/") + "/" if is_remote(out) else "\0"
    try:
        if not glob.has_magic(source) and system.isfile(root) and source.lower().endswith(_NAMING):
            yield from _listed(source, left_out)
            return
        address, root, found = _listing(system, source, root, out, left_out)
        for path in found:
            key = path.removeprefix(root)
            if path.startswith(out) or any(part.startswith(".") for part in key.split("/")):
                continue
            if os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES:
                yield Entry(key, address + key)
            else:
                left_out.endings[os.path.splitext(path)[1].lower()] += 1
    except GradCamKitError:
        raise
    except Exception as error:  # storage libraries raise all kinds of exceptions
        raise_interruption(error)
        raise unreachable(source, error) from error


def _listing(system: Any, source: str, root: str, out: str, left_out: Skipped) -> tuple[str, str, Iterable[str]]:
    """Return a remote folder as an address and as a path on its file system, with the paths of its files."""
    address = source.rstrip("/")
    if glob.has_magic(source):
        found: Iterable[str] = system.glob(root)
        while glob.has_magic(address):
            address, root = address.rpartition("/")[0], root.rpartition("/")[0]
    elif system.isdir(root):
        found = _walked(system, root, out, left_out)
    elif system.isfile(root):
        found = [root]
        address, root = address.rpartition("/")[0], root.rpartition("/")[0]
    else:
        raise InputError(f"there is no file or folder {source!r}; SOURCE is {KINDS}")
    return f"{address}/", f"{root.rstrip('/')}/", found


def _walked(system: Any, root: str, out: str, left_out: Skipped) -> Iterator[str]:
    """Yield the files below a remote folder, except those of runs: of this one, and of others, which are noted."""
    for folder, folders, names in system.walk(root):
        is_own = f"{folder}/" == out
        if is_own or (folder != root and "run.json" in names and "shards" in folders):
            if not is_own:
                left_out.runs.append(folder[len(root) :].lstrip("/"))
            folders.clear()  # which keeps the walk from entering them
            continue
        yield from (f"{folder}/{name}" for name in names)


def _absolute(folder: str) -> str:
    """Return an absolute path; if it contains `..`, resolve links first, because the parent depends on them."""
    return os.path.realpath(folder) if ".." in folder.split("/") else os.path.abspath(folder)


def _before_wildcard(pattern: str) -> str:
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    return root

"""Folders on this machine and on remote storage (`s3://...`), with atomic writes."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gradcam_kit.errors import PictureError
from gradcam_kit.jobs.storage.addresses import is_remote, remote
from gradcam_kit.jobs.storage.remote_folder import RemoteFolder

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_OLD = 600  # age in seconds from which temporary files count as abandoned; no write takes that long
_TEMPORARY = re.compile(r"[0-9a-z]{8,}-\d+-[0-9a-f]+")  # suffix of temporary files
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_full(error: BaseException) -> bool:
    """Whether an error means that writing is impossible: disk full, quota exceeded, or read-only file system."""
    return isinstance(error, OSError) and error.errno in _HOPELESS


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file on this machine or on remote storage for reading.

    Raises:
        PictureError: the path is not a regular file, so that reading might block forever.
    """
    if is_remote(path):
        system, inner = remote(path)
        with system.open(inner, "rb") as file:
            yield file
        return
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise PictureError("not a regular file")
    with open(path, "rb") as file:
        yield file


class LocalFolder:
    """A folder on this machine or on a mounted file system; names of files are relative to it and use `/`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        if name.startswith("/") or ".." in name.split("/"):
            raise AssertionError(f"{name!r} leads out of {self.root!r}")  # not `assert`, which `python -O` removes
        return Path(self.root, name)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if the file does not exist."""
        path = self.path(name)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically and durably; other processes may read it at any time.

        The content goes to a temporary file in the same folder, which is synced to disk and renamed. The next write of
        the file removes temporary files of killed processes: at once if the process ran on this machine, otherwise
        after ten minutes.
        """
        path = self.path(name)
        with _beside(path, content) as temporary:
            try:
                temporary.replace(path)
            except FileNotFoundError:
                if not path.exists():  # otherwise another process has just written the same file and cleaned up
                    raise

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; return False if it exists, even if another process has just created it.

        On file systems without hard links, a reader may briefly see a partial file.
        """
        path = self.path(name)
        with _beside(path, content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # no hard links on this file system
                return _written_exclusively(path, content)
        return True

    def put(self, name: str, content: bytes) -> None:
        """Write a file, but not atomically: readers must wait for a later `write` of a file that refers to this one.

        Symbolic links are not followed.
        """
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o666), "wb") as file:
            file.write(content)

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, without hidden files; empty if there is no such folder."""
        try:
            return sorted(name for name in os.listdir(self.path(folder)) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: str) -> Iterator[str]:
        """Yield the relative names of all files below a folder; links are neither listed nor followed."""
        root = self.path(folder)
        for place, folders, files in os.walk(root):
            folders[:] = [one for one in folders if not os.path.islink(os.path.join(place, one))]
            for file in files:
                path = Path(place, file)
                if not path.is_symlink():
                    yield path.relative_to(root).as_posix()

    def holds(self, name: str) -> bool:
        """Whether a name is taken: by a file, a nonempty folder, or a link."""
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            return any(path.iterdir())
        return os.path.lexists(path)

    def is_link(self, name: str) -> bool:
        """Whether a name is a symbolic link."""
        return self.path(name).is_symlink()

    def blocks(self, name: str) -> bool:
        """Whether a file, or a link that leads to no folder, prevents a folder of this name."""
        path = self.path(name)
        return os.path.lexists(path) and not path.is_dir()

    def remove(self, *names: str) -> None:
        """Remove files, if they exist, and folders that become empty."""
        folders = set()
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                self.path(name).unlink()
                folders.update([*Path(name).parents][:-1])
        for folder in sorted(folders, key=lambda one: -len(one.parts)):
            with suppress(OSError):  # the folder is not empty
                self.path(folder.as_posix()).rmdir()

    def open(self, name: str) -> IO[bytes]:
        """Open a file for random access."""
        return self.path(name).open("rb")


def _written_exclusively(path: Path, content: bytes) -> bool:
    """Write a file under its name unless the name is taken, even by a broken link."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except FileExistsError:
        return False
    try:
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


@contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write a temporary file beside `path` and sync it to disk; the block renames or links it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    for left in glob.glob(f"{glob.escape(os.path.join(path.parent, '.' + path.name))}.*"):
        # foreign files, such as .rows.csv.swp, have another suffix
        ending = os.path.basename(left)[len(path.name) + 2 :]
        if _TEMPORARY.fullmatch(ending) and _is_left_over(Path(left)):
            Path(left).unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_left_over(temporary: Path) -> bool:
    """Whether a temporary file is abandoned: it is old, or its process ran on this machine and is dead."""
    host, _, rest = temporary.name.rpartition(".")[2].partition("-")
    process = rest.partition("-")[0]
    try:
        if os.name == "posix" and host == _HOST and process.isdecimal():
            os.kill(int(process), 0)  # signal 0 only checks that the process exists
        return time.time() - temporary.stat().st_mtime > _OLD
    except ProcessLookupError:
        return True
    except OSError:  # the process belongs to another user, or the file is gone
        return False


Folder = LocalFolder | RemoteFolder


def folder_at(path: str | os.PathLike[str]) -> Folder:
    """Return the folder at a path or address, local or remote; the folder need not exist."""
    return RemoteFolder(os.fspath(path)) if is_remote(path) else LocalFolder(os.fspath(path))

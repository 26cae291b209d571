"""Folders on this machine and on remote storage (`s3://...`), and files in them that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import fsspec

from gradcam_kit.errors import InputError, PictureError

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_OLD = 600  # seconds; no file takes as long to be written
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names remote storage."""
    return "://" in os.fspath(path)


def remote(path: str) -> tuple[Any, str]:
    """The file system of a remote path, and the path on it: fsspec's, or Arrow's where a library for that is missing.

    Raises:
        InputError: a kind of storage that is not known, that has no library here, or that cannot be reached.
    """
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(path)
    except ImportError as error:
        scheme, _, rest = path.partition("://")
        authority, _, inner = rest.partition("/")
        try:
            system, root = _arrow_system(f"{scheme}://{authority}/")
        except (OSError, ValueError, NotImplementedError) as failure:
            said = f"{_first_line(error)}; without that library: {_first_line(failure)}"
            raise InputError(f"{path!r} cannot be used: {said}") from error
        return system, f"{root.rstrip('/')}/{inner}".rstrip("/")
    except (OSError, ValueError) as error:
        raise InputError(f"{path!r} cannot be used: {_first_line(error)}") from error
    return found


def is_full(error: BaseException) -> bool:
    """Whether an error says that no other file can be written there either."""
    return isinstance(error, OSError) and error.errno in _HOPELESS


@cache
def _arrow_system(root: str) -> tuple[Any, str]:
    """Arrow's file system of a bucket or host, as fsspec's are, and the path of its root; made once for all files."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(root)
    return ArrowFSWrapper(system), path


def unreachable(path: str, error: Exception) -> InputError:
    """The error of remote storage that is known and gives no answer."""
    return InputError(f"{path!r} cannot be reached: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file of this machine or of remote storage for reading.

    Raises:
        PictureError: it is no regular file, so that reading it might never end.
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
    """A folder of this machine, or of a file system that it mounts; names in it are relative, with `/`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Where a file lies."""
        assert not name.startswith("/") | (".." in name.split("/")), f"{name!r} leads out of {self.root!r}"
        return Path(self.root, name)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file that others may read at any time: whole or not at all, and safe when this returns.

        It is written beside its place, brought to the disk and renamed. What a process that was killed left is removed,
        if it was one of this machine or some minutes ago.
        """
        path = self.path(name)
        with _beside(path, content) as temporary:
            try:
                temporary.replace(path)
            except FileNotFoundError:
                if not path.exists():  # else another process has just written the same, and swept
                    raise

    def create(self, name: str, content: bytes) -> bool:
        """`write` unless the file is there; False if it is, also if another process was faster by a moment.

        Where there are no hard links, a reader may meet a part of it for a moment.
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
        """Write a file that nobody reads before a later `write` says that it is there."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted, without hidden ones; none if there is no such folder."""
        try:
            return sorted(name for name in os.listdir(self.path(folder)) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def open(self, name: str) -> IO[bytes]:
        """A file for random access."""
        return self.path(name).open("rb")


class RemoteFolder:
    """A folder of remote storage, through fsspec; its stores show a file when all of it has arrived."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._system, self._base = remote(self.root)

    def path(self, name: str) -> str:
        """Where a file lies on its file system."""
        return f"{self._base}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            content: bytes = self._system.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # libraries of storages raise anything
            raise unreachable(self.root, error) from error
        return content

    def write(self, name: str, content: bytes) -> None:
        """Send a file as one object."""
        self._system.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(self.path(name), content)

    put = write

    def create(self, name: str, content: bytes) -> bool:
        """Send a file unless it is there; False if it is, also if another process was faster.

        The latter is best effort: storages that cannot refuse to replace are asked afterwards whose file it is, and of
        two processes each may be told that it is its own, if one sends after the other has asked.
        """
        path = self.path(name)
        self._system.invalidate_cache()
        if self._system.exists(path):
            return False
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._system.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError):  # it does not know of modes
            self._system.pipe_file(path, content)
        return self.read(name) == content

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted, without hidden ones; none if there is no such folder."""
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in paths if not (name := path.rpartition("/")[2]).startswith("."))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        if self._system.exists(self.path(name)):
            self._system.rm(self.path(name), recursive=True)

    def open(self, name: str) -> Any:
        """A file for random access."""
        return self._system.open(self.path(name), "rb")


def _written_exclusively(path: Path, content: bytes) -> bool:
    """Write a file under its name, unless that is taken, also by a link that leads nowhere."""
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
    """A file with this content on the disk, in the folder of `path`, for the time that it takes to give it its name."""
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
        if _is_left_over(Path(left)):
            Path(left).unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_left_over(temporary: Path) -> bool:
    """Whether nobody will give a temporary file its name: it is old, or its process was of this machine and is dead."""
    host, _, rest = temporary.name.rpartition(".")[2].partition("-")
    process = rest.partition("-")[0]
    try:
        if os.name == "posix" and host == _HOST and process.isdecimal():
            os.kill(int(process), 0)  # only asks
        return time.time() - temporary.stat().st_mtime > _OLD
    except ProcessLookupError:
        return True
    except OSError:  # another user's process, or the file is gone
        return False


Folder = LocalFolder | RemoteFolder


def folder_at(path: str | os.PathLike[str]) -> Folder:
    """The folder of a path, which need not exist."""
    return RemoteFolder(os.fspath(path)) if is_remote(path) else LocalFolder(os.fspath(path))

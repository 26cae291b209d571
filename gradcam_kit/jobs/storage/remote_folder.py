"""A folder on remote storage, with the same operations as a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gradcam_kit.errors import raise_interruption
from gradcam_kit.jobs.storage.addresses import remote, unreachable


class RemoteFolder:
    """A folder on remote storage, through fsspec; such storage shows a file only once it is complete."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._system, self._base = remote(self.root)

    def path(self, name: str) -> str:
        """Return the path of a file on its file system."""
        return f"{self._base}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if the file does not exist."""
        try:
            content: bytes = self._system.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # storage libraries raise all kinds of exceptions
            raise_interruption(error)
            raise unreachable(self.root, error) from error
        return content

    def write(self, name: str, content: bytes) -> None:
        """Upload a file as one object."""
        self._system.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(self.path(name), content)

    put = write

    def create(self, name: str, content: bytes) -> bool:
        """Upload a file unless it exists; return False if it exists, even if another process has just created it.

        Storage without conditional writes cannot guarantee this. There, the file is read back to see whose content it
        has, so the call may return True in two processes if one uploads after the other has checked.
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
        except (TypeError, ValueError, NotImplementedError):  # this file system has no exclusive mode
            self._system.pipe_file(path, content)
        return self.read(name) == content

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, without hidden files; empty if there is no such folder."""
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in paths if not (name := path.rpartition("/")[2]).startswith("."))

    def files(self, folder: str) -> Iterator[str]:
        """Yield the names of all files below a folder, relative to it."""
        self._system.invalidate_cache()
        root = self.path(folder).rstrip("/") + "/"
        try:
            found = self._system.find(root)
        except FileNotFoundError:
            return
        inside = root.lstrip("/")
        yield from (path.lstrip("/")[len(inside) :] for path in found if path.lstrip("/").startswith(inside))

    def holds(self, name: str) -> bool:
        """Whether a name is taken."""
        return next(self.files(name), None) is not None or bool(self._system.exists(self.path(name)))

    def is_link(self, name: str) -> bool:
        """Return False, because remote storage has no symbolic links."""
        return False

    def blocks(self, name: str) -> bool:
        """Return False, because a file on remote storage does not prevent a folder of the same name."""
        return False

    def remove(self, *names: str) -> None:
        """Remove files, if they exist."""
        paths = list(map(self.path, names))
        if len(paths) > 1:
            with suppress(
                FileNotFoundError, NotImplementedError, TypeError
            ):  # Arrow's file systems do not accept lists
                self._system.rm(paths)  # concurrently, because storage answers slowly
                return
        for path in paths:
            if self._system.exists(path):
                self._system.rm(path)

    def open(self, name: str) -> Any:
        """Open a file for random access."""
        return self._system.open(self.path(name), "rb")

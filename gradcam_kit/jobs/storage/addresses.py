"""Addresses of remote storage: accepted kinds, and their file systems."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import fsspec
from fsspec.registry import known_implementations

from gradcam_kit.errors import InputError, OptionError, raise_interruption

SIMPLE = frozenset(
    {
        *("abfs", "abfss", "adl", "az", "box", "dbfs", "dropbox", "file", "ftp", "gcs", "gdrive", "gs", "hdfs", "hf"),
        *("http", "https", "lakefs", "local", "memory", "oci", "oss", "root", "s3", "s3a", "sftp", "smb", "ssh"),
        *("tos", "viewfs", "wandb", "webdav", "webhdfs"),
    }
)
"""Kinds of storage that only hold files.

Kinds that combine other kinds, unpack archives or follow instructions in files are excluded (`zip`, `simplecache`,
`reference`, ...): a line of an untrusted list could make them read other places, fill the disk or, in some
versions of fsspec, run code.
"""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address such as `s3://...`; addresses with `file://` count, too."""
    return "://" in os.fspath(path)


def check_local(out: str | os.PathLike[str], command: str) -> None:
    """Refuse an output on remote storage for a command that writes only to this machine.

    Args:
        out: output of the command; a `Path` of `s3://...` has only one slash, which is recognized too.
        command: name of the command.

    Raises:
        OptionError: `out` is an address.
    """
    kind, separator, rest = os.fspath(out).partition(":/")
    if separator and (rest.startswith("/") or kind.lower() in SIMPLE or kind.lower() in known_implementations):
        address = f"{kind}://{rest.lstrip('/')}"
        raise OptionError(
            f"--out {address!r} is an address, but {command} writes only to this machine; give a local path"
        )


def local_path(path: str) -> str | None:
    """Return the local path that a path or a `file://...` address names; None for addresses of remote storage."""
    if not is_remote(path):
        return path
    return path.partition("://")[2] if scheme(path) in ("file", "local") else None


def check_address(path: str, also: str | None = None) -> None:
    """Refuse addresses that do not simply name a file or folder on one storage.

    Args:
        path: an address with `://`.
        also: a kind of storage that is accepted besides `SIMPLE`; None = all kinds that fsspec does not know by
            itself, because the program has registered them.

    Raises:
        InputError: the address is of another kind, or chains several kinds.
    """
    kind = scheme(path)
    if "::" in path:
        problem = "it chains several kinds of storage"
    elif kind in SIMPLE or kind == also or (also is None and kind not in known_implementations):
        return
    else:
        problem = f"{kind}:// is not one of the simple kinds of storage"
    raise InputError(
        f"{path!r} cannot be used: {problem}; expected a path or a plain address such as s3://, gs://, "
        "https:// or hf://"
    )


def scheme(path: str) -> str:
    """Return the kind of storage that an address names."""
    return path.partition("://")[0].lower()


def remote(path: str) -> tuple[Any, str]:
    """Return the file system of an address and the path on it; Arrow's file system if fsspec lacks a library.

    Raises:
        InputError: an unknown kind of storage, a missing library, unreachable storage, or an address that chains
            several kinds.
    """
    check_address(path)
    path = f"{scheme(path)}://{path.partition('://')[2]}"  # libraries know only the lowercase names
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(path)
    except ImportError as error:
        kind, _, rest = path.partition("://")
        authority, _, inner = rest.partition("/")
        try:
            system, root = _arrow_system(f"{kind}://{authority}/")
        except (OSError, ValueError, NotImplementedError) as failure:
            said = f"{first_line(error)}; Arrow's own file system fails too: {first_line(failure)}"
            raise InputError(f"{path!r} cannot be used: {said}") from error
        return system, f"{root.rstrip('/')}/{inner}".rstrip("/")
    except (OSError, ValueError) as error:
        raise_interruption(error)
        raise InputError(f"{path!r} cannot be used: {first_line(error)}") from error
    return found


@cache
def _arrow_system(root: str) -> tuple[Any, str]:
    """Return Arrow's file system of a bucket or host, wrapped for fsspec, and its root; cached for all files."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(root)
    return ArrowFSWrapper(system), path


def unreachable(path: str, error: Exception) -> InputError:
    """Return the error for remote storage that does not answer."""
    return InputError(f"{path!r} cannot be reached: {type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).partition("\n")[0]

"""Find the files in a folder that belong to a run; a run never removes or replaces other files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.storage.addresses import local_path
from gradcam_kit.jobs.storage.folders import Folder

PAGE = "report.html"
PARTS = ("shards", "metrics", "thumbnails", "overlays", "report")
"""Folders of a run in the order in which they are emptied; shards are first, because a picture without a shard is
explained again.
"""

_NAMES = {
    **dict.fromkeys(("shards", "metrics", "thumbnails"), re.compile(r"\d{5,}\.parquet")),
    "report": re.compile(r"speed\.json|\d{5,}/\d+\.jpg"),
}
_PAGE_MARKS = (b'<meta name="gradcam-kit-rows"', b"<h1>Where did <em>")


def own_files(folder: Folder, methods: Iterable[str]) -> Iterator[str]:
    """Yield the files that are named like those of a run with these methods, except `run.json` and the page."""
    endings = "|".join(map(re.escape, methods)) or r"\b\B"  # a run without methods has no overlays
    overlay = re.compile(rf".*\.({endings})(\.\d+)?\.jpg", re.DOTALL)
    for part in PARTS:
        name = _NAMES.get(part, overlay)
        yield from (f"{part}/{file}" for file in folder.files(part) if name.fullmatch(file))


def is_run_manifest(manifest: Any) -> bool:
    """Whether the content of a `run.json` is the manifest of a run by any version of this package."""
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("format"), int):
        return False
    versions = manifest.get("versions")
    return isinstance(versions, Mapping) and "gradcam_kit" in versions and isinstance(manifest.get("methods"), Mapping)


def check_vacant(folder: Folder, methods: Iterable[str], overwrite: bool) -> None:
    """Refuse to begin a run in a folder in which foreign files have the names that the run needs.

    Args:
        folder: the folder of the run, without a `run.json`.
        methods: methods of the run.
        overwrite: whether a run was to be replaced; if so, any file in a folder named like a run's folder is foreign.

    Raises:
        OptionError: such files exist; the message names the first.
    """
    for part in PARTS:
        if folder.blocks(part):
            raise OptionError(
                f"{folder.root}/{part} exists, but the run needs a folder of this name; choose another "
                "folder for the run, or move the file"
            )
    taken = (name for name in (PAGE, *PARTS) if folder.holds(name)) if overwrite else own_files(folder, methods)
    found = next(taken, None)
    if found is None and folder.holds(PAGE):
        found = PAGE
    if found is not None:
        asked = "there is no run to overwrite" if overwrite else "no run wrote it"
        raise OptionError(
            f"{folder.root!r} has no run.json but holds {found!r}: {asked}, so nothing is replaced; choose "
            "another folder, or move the files"
        )


def check_links(folder: Folder) -> None:
    """Refuse to empty folders reached through symbolic links, because no run makes links.

    Raises:
        OptionError: there is a link; the message names it.
    """
    names = [name for part in PARTS[:3] if not folder.is_link(part) for name in _children(folder, part)]
    for name in (*PARTS, *names):
        if folder.is_link(name):
            raise OptionError(
                f"{folder.root}/{name} is a symbolic link, but --overwrite removes only files that a run "
                "wrote; remove the link, or choose another folder"
            )


def check_page(folder: Folder, remedy: str) -> None:
    """Refuse to replace a `report.html` that is not the page of a run.

    Raises:
        OptionError: `report.html` is not the page of a run.
    """
    if folder.holds(PAGE) and not has_own_page(folder):
        raise OptionError(f"{folder.root}/{PAGE} is not the page of a run, so it is not replaced; {remedy}")


def has_own_page(folder: Folder) -> bool:
    """Whether a readable `report.html` is the page of a run."""
    try:
        content = folder.read(PAGE)
    except OSError:  # a folder, a pipe, or an unreadable file
        return False
    return content is not None and any(mark in content for mark in _PAGE_MARKS)


def check_inputs_stay(folder: Folder, inputs: Iterable[str]) -> None:
    """Refuse to overwrite a run if an input is one of its files, or is in one of the folders to be emptied.

    Args:
        folder: the folder of the run.
        inputs: the input files and folders.

    Raises:
        OptionError: such inputs exist; the message names the first.
    """
    own = [f"{place}/{name}" for place in _places(folder.root) for name in (*PARTS, PAGE, "run.json")]
    exact, inside = {*own}, tuple(f"{name}/" for name in own)
    for path in inputs:
        for place in _places(path):
            if place in exact or place.startswith(inside):
                raise OptionError(
                    f"--overwrite would remove {path!r} from {folder.root!r} before it is read; choose another "
                    "folder for the run"
                )


def _children(folder: Folder, part: str) -> list[str]:
    return [f"{part}/{name}" for name in folder.names(part)]


def _places(path: str) -> tuple[str, ...]:
    """Return a path both as named and with its links resolved."""
    local = local_path(path)
    if local is None:
        return (path.rstrip("/"),)
    whole = os.path.abspath(local)
    above, name = os.path.split(whole)
    by_folder = os.path.join(_real(above), name)
    return whole, by_folder, os.path.realpath(by_folder) if os.path.islink(by_folder) else by_folder


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)

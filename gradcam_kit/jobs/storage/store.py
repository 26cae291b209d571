"""The folder of a run: its `run.json`, and the rules for beginning, resuming or replacing it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.storage.folders import folder_at
from gradcam_kit.jobs.storage.manifest import check_readable, check_same
from gradcam_kit.jobs.storage.names import overlay_name
from gradcam_kit.jobs.storage.ownership import PAGE, check_links, check_vacant, has_own_page, is_run_manifest, own_files
from gradcam_kit.jobs.storage.shards import ShardFiles

_TRIES, _PAUSE = 10, 0.1  # tries to read a manifest that another process is writing, and seconds between tries
_LARGEST = 2**26  # maximum size of a manifest in bytes; one with 20,000 classes has a few megabytes


@dataclass(frozen=True)
class Store(ShardFiles):
    """The folder of one run."""

    @classmethod
    def at(cls, out: str, extra: tuple[pa.Field, ...] = ()) -> Store:
        """Return the store of a path.

        Raises:
            OptionError: the path is a file.
        """
        if Path(out).exists() and not Path(out).is_dir():
            raise OptionError(f"--out {out!r} is a file; expected a folder")
        return cls(folder_at(out), extra)

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the run in this folder; None if there is no run.

        Raises:
            OptionError: there are rows but no manifest, or the manifest is unreadable, too large, or not a JSON object.
        """
        place, read = f"{self.folder.root}/run.json", None
        for tried in range(1, _TRIES + 1):
            try:
                content = self.folder.read("run.json")
            except OSError as error:
                raise OptionError(f"{place} cannot be read: {error.strerror or error}") from error
            if content is None:
                break
            if len(content) > _LARGEST:
                raise OptionError(
                    f"{place} has {len(content):,} bytes; the manifest of a run may have at most {_LARGEST:,}; "
                    "remove it, or choose another folder"
                )
            try:
                read = json.loads(content)
                break
            except (ValueError, RecursionError) as error:
                if tried == _TRIES:
                    problem = f"{place} is not JSON: {error}; remove it, or choose another folder"
                    raise OptionError(problem) from error
            time.sleep(_PAUSE)  # another process may be writing it
        if isinstance(read, dict):
            return read
        if read is not None or content is not None:
            raise OptionError(
                f"{place} is not the manifest of a run: expected a JSON object; remove it, or choose another folder"
            )
        if any(name.endswith(".parquet") for name in self.folder.names("shards")):
            if self.folder.read("run.json") is not None:
                return self.manifest()  # another part has started the run meanwhile
            raise OptionError(
                f"{self.folder.root!r} holds shards without a run.json, so their origin is unknown; choose "
                "another folder, or move them away"
            )
        return None

    def run_manifest(self) -> dict[str, Any] | None:
        """Return the `manifest`, after checking the fields that are read; None if there is no run.

        Raises:
            GradCamKitError: as for `manifest`, or a field of the manifest is invalid.
        """
        manifest = self.manifest()
        if manifest is not None:
            check_readable(manifest, self.place("run.json"))
        return manifest

    def check_free(self, methods: Iterable[str], overwrite: bool) -> dict[str, Any] | None:
        """Return the manifest of the run to resume or replace; None if a new run can begin here.

        Raises:
            OptionError: the folder holds foreign files or links that the run would overwrite, remove or replace.
        """
        manifest, methods = self.manifest(), list(methods)
        if manifest is None:
            try:
                check_vacant(self.folder, methods, overwrite)
                return None
            except OptionError:
                manifest = self.manifest()  # another part may have started the run meanwhile
                if manifest is None:
                    raise
        if not is_run_manifest(manifest):
            raise OptionError(
                f"{self.place('run.json')} is not the manifest of a run, so nothing in {self.folder.root!r} "
                "is replaced; choose another folder"
            )
        if overwrite:
            check_links(self.folder)
        return manifest

    def begin(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """Begin the run in this folder, or resume it.

        Overwriting a run removes the files that it wrote; other files in its folders are kept.

        Raises:
            OptionError: the folder holds another run without `overwrite`, or an unreadable `run.json`.
        """
        with self.named():
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            if overwrite:
                before = self.check_free(manifest.get("methods", ()), overwrite)
                # empty the folders first: if this is interrupted, the remaining files still belong to the old run
                if before is not None:
                    page = [PAGE] if has_own_page(self.folder) else []
                    self.folder.remove(*own_files(self.folder, before["methods"]), *page)
                self.folder.write("run.json", content.encode("utf-8", "backslashreplace"))
                return
            for _ in range(_TRIES):
                if self.folder.create("run.json", content.encode("utf-8", "backslashreplace")):
                    return
                if (before := self.manifest()) is not None:
                    check_same(before, manifest, self.folder.root)
                    return
                time.sleep(_PAUSE)  # another process has removed run.json since
        raise OptionError(
            f"{self.folder.root}/run.json can be neither written nor read, perhaps because it is a broken symbolic "
            "link; remove it, choose another folder, or replace it with --overwrite"
        )

    def overlay_name(self, key: str, method: str, rank: int = 0) -> str:
        """Return the path of a picture's overlay, see `storage.names.overlay_name`."""
        return overlay_name(key, method, rank)

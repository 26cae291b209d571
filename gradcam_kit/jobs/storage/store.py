"""The folder of a run: its `run.json`, and the right to begin, go on or replace it."""

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

_TRIES, _PAUSE = 10, 0.1  # to read a manifest that another process writes; seconds
_LARGEST = 2**26  # bytes of a manifest; one of 20,000 classes has a few megabytes


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
            raise OptionError(f"--out {out!r} is a file; a folder is needed")
        return cls(folder_at(out), extra)

    def manifest(self) -> dict[str, Any] | None:
        """Return what determined the rows that are here; None if there is no run.

        Raises:
            OptionError: rows without a manifest, or a manifest that cannot be read, or is not one.
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
                raise OptionError(f"{place} has {len(content):,} bytes, more than any run writes; remove it")
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
                f"{place} is not the manifest of a run, which is a JSON object; remove it, or choose another folder"
            )
        if any(name.endswith(".parquet") for name in self.folder.names("shards")):
            if self.folder.read("run.json") is not None:
                return self.manifest()  # another part has begun the run meanwhile
            raise OptionError(
                f"{self.folder.root!r} holds shards without a run.json, so nothing is known of them; choose another "
                "folder, or move them away"
            )
        return None

    def run_manifest(self) -> dict[str, Any] | None:
        """Return the `manifest` for readers of a run, each field checked; None if there is no run.

        Raises:
            GradCamKitError: as `manifest`, or the content is not the manifest of a run.
        """
        manifest = self.manifest()
        if manifest is not None:
            check_readable(manifest, self.place("run.json"))
        return manifest

    def check_free(self, methods: Iterable[str], overwrite: bool) -> dict[str, Any] | None:
        """Return the manifest of the run that goes on or is replaced here; None if a run can begin here.

        Raises:
            OptionError: the folder holds what no run wrote where the run would write, remove or replace.
        """
        manifest, methods = self.manifest(), list(methods)
        if manifest is None:
            try:
                check_vacant(self.folder, methods, overwrite)
                return None
            except OptionError:
                manifest = self.manifest()  # another part may have begun the run meanwhile
                if manifest is None:
                    raise
        if not is_run_manifest(manifest):
            raise OptionError(
                f"{self.place('run.json')} is not the manifest of a run, and nothing in {self.folder.root!r} is "
                "replaced; choose another folder"
            )
        if overwrite:
            check_links(self.folder)
        return manifest

    def begin(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """Begin the run in this folder, or go on with it.

        A run that is overwritten loses what it wrote itself; whatever else lies in its folders stays.

        Raises:
            OptionError: another run is there and may not be overwritten, or a `run.json` that cannot be read.
        """
        with self.named():
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            if overwrite:
                before = self.check_free(manifest.get("methods", ()), overwrite)
                if before is not None:  # emptied first: whenever this is interrupted, what is left is still that run
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
                time.sleep(_PAUSE)  # it has been removed since
        raise OptionError(
            f"{self.folder.root}/run.json can be neither written nor read, as if it were a symbolic link that leads "
            "nowhere; remove it, choose another folder, or replace it: --overwrite"
        )

    def overlay_name(self, key: str, method: str, rank: int = 0) -> str:
        """Return where the overlay of a picture lies, see `storage.names.overlay_name`."""
        return overlay_name(key, method, rank)

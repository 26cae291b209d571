"""What a run leaves in its folder: `run.json`, shards of rows, overlays, thumbnails."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.request import SHOWN
from gradcam_kit.jobs.storage.folders import Folder, LocalFolder, folder_at
from gradcam_kit.jobs.storage.manifest import check_same
from gradcam_kit.jobs.storage.parquet import as_parquet, read_parquet
from gradcam_kit.jobs.storage.rows import SCHEMA, Row

_SETTINGS = b"gradcam_kit.metrics"
_KEYS = ("path", "method", "rank")
_LONGEST_NAME = 255  # bytes, on all common file systems
_AT_ONCE = 16  # shards that are looked at
_TRIES, _PAUSE = 10, 0.1  # to read a manifest that another process writes; seconds
_PARTS = (
    "run.json",
    "report.html",
    "report",
    "shards",
    "overlays",
    "thumbnails",
    "metrics",
)  # run.json first: without it there is no run


@dataclass(frozen=True)
class Counts:
    """What is in a shard.

    Attributes:
        problems: the first few failures, one line each.
    """

    pictures: int
    failed: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Store:
    """The folder of one run; `extra` are columns beside those of `SCHEMA`."""

    folder: Folder
    extra: tuple[pa.Field, ...] = field(default=())

    @classmethod
    def at(cls, out: str, extra: tuple[pa.Field, ...] = ()) -> Store:
        """The store of a path.

        Raises:
            OptionError: the path is a file.
        """
        if Path(out).exists() and not Path(out).is_dir():
            raise OptionError(f"--out {out!r} is a file; a folder is needed")
        return cls(folder_at(out), extra)

    def manifest(self) -> dict[str, Any] | None:
        """What determined the rows that are here; None if there is no run.

        Raises:
            OptionError: rows without a manifest, or a manifest that cannot be read.
        """
        for tried in range(1, _TRIES + 1):
            content = self.folder.read("run.json")
            if content is None:
                break
            try:
                read: dict[str, Any] = json.loads(content)
                return read
            except ValueError as error:
                if tried == _TRIES:
                    problem = f"{self.folder.root}/run.json is no JSON: {error}; replace it: --overwrite"
                    raise OptionError(problem) from error
            time.sleep(_PAUSE)  # another process may be writing it
        if any(name.endswith(".parquet") for name in self.folder.names("shards")):
            raise OptionError(
                f"{self.folder.root!r} holds shards without a run.json; choose another folder, or replace them: "
                "--overwrite"
            )
        return None

    def begin(self, manifest: Mapping[str, Any], overwrite: bool) -> None:
        """Make the folder that of this run, which may have been begun before.

        Raises:
            OptionError: another run is there and may not be overwritten, or a `run.json` that cannot be read.
        """
        with self.named():
            if overwrite:
                for name in _PARTS:
                    self.folder.remove(name)
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
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

    def complete(self, but: Container[int] = ()) -> dict[int, Counts]:
        """The shards that are here and whole, by number, without problems; what a disk has damaged is none.

        Args:
            but: numbers that are not looked at.
        """
        names = (name.removesuffix(".parquet") for name in self.folder.names("shards") if name.endswith(".parquet"))
        numbers = [number for name in names if name.isdecimal() and (number := int(name)) not in but]
        with ThreadPoolExecutor(_AT_ONCE) as threads:  # remote storage answers slowly, but many questions at once
            found = zip(numbers, threads.map(self._totals, numbers), strict=True)
            return {number: counts for number, counts in found if counts is not None}

    def _totals(self, number: int) -> Counts | None:
        if (footer := self._footer(f"shards/{_shard(number)}")) is None:
            return None
        metadata = footer.metadata or {}
        pictures, failed = (int(metadata.get(f"gradcam_kit.{name}".encode(), 0)) for name in ("pictures", "failed"))
        return Counts(pictures, failed)

    def digest(self) -> str:
        """SHA-256 of all rows that are here, and of what was measured of them, as far as the ends of their files tell.

        There stand the counts, sizes and extreme values of all columns.
        """
        names = [f"{folder}/{name}" for folder in ("shards", "metrics") for name in self.folder.names(folder)]
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for name, footer in zip(names, threads.map(self._footer, names), strict=True):
                if footer is not None:
                    digest.update(repr((name, footer.metadata, footer.to_dict())).encode())
        return digest.hexdigest()

    def _footer(self, name: str) -> pq.FileMetaData | None:
        """What stands at the end of a file of rows; None if it is damaged."""
        try:
            with self.folder.open(name) as file:
                return pq.read_metadata(file)
        except (OSError, pa.ArrowException):
            return None

    def write_shard(self, number: int, rows: Sequence[Row], thumbnails: Mapping[str, bytes]) -> Counts:
        """Write the rows of one shard, and before them the thumbnails of its pictures by their keys."""
        counts = counted(rows)
        metadata = {"gradcam_kit.pictures": str(counts.pictures), "gradcam_kit.failed": str(counts.failed)}
        schema = pa.schema([*SCHEMA, *self.extra], metadata=metadata)
        with self.named():
            if thumbnails:
                small = pa.table({"path": list(thumbnails), "jpeg": pa.array(thumbnails.values(), pa.binary())})
                self.folder.write(f"thumbnails/{_shard(number)}", as_parquet(small))
            self.folder.remove(f"metrics/{_shard(number)}")  # measured of the rows that were here before
            self.folder.write(f"shards/{_shard(number)}", as_parquet(pa.Table.from_pylist(list(rows), schema=schema)))
        return counts

    def write_metrics(self, number: int, rows: Sequence[Row], fields: Iterable[pa.Field], settings: Any) -> None:
        """Write what was measured later of the rows of one shard, with the settings of each metric."""
        schema = pa.schema(fields, metadata={_SETTINGS: json.dumps(settings).encode()})
        with self.named():
            self.folder.write(f"metrics/{_shard(number)}", as_parquet(pa.Table.from_pylist(list(rows), schema=schema)))

    def read_metrics(self, number: int) -> tuple[pa.Table | None, dict[str, Any]]:
        """What was measured later of the rows of a shard, and the settings of each metric; nothing if nothing was.

        What a disk has damaged is nothing, and so is what was measured of other rows, while the shard was replaced.
        """
        content = self.folder.read(f"metrics/{_shard(number)}")
        try:
            table = None if content is None else read_parquet(BytesIO(content))
        except pa.ArrowException:
            table = None
        settings = {} if table is None else _settings(table.schema.metadata)
        if table is None or not settings:
            return None, {}
        with self.folder.open(f"shards/{_shard(number)}") as file:
            rows = read_parquet(file, _KEYS)
        own = table.slice(0, rows.num_rows)
        return (table, settings) if all(own[key].equals(rows[key]) for key in _KEYS) else (None, {})

    def measured_later(self) -> dict[str, Any]:
        """The metrics that were measured later of the rows of some shard, and the settings of each."""
        names = [f"metrics/{name}" for name in self.folder.names("metrics")]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            footers = [footer for footer in threads.map(self._footer, names) if footer is not None]
        return {name: one for footer in footers for name, one in _settings(footer.metadata).items()}

    def read_shard(self, number: int, columns: Sequence[str] | None = None) -> list[Row]:
        """The rows of a shard."""
        with self.folder.open(f"shards/{_shard(number)}") as file:
            rows: list[Row] = read_parquet(file, columns).to_pylist()
            return rows

    def read_thumbnails(self, number: int) -> dict[str, bytes]:
        """The thumbnails of a shard's pictures by their keys."""
        if _shard(number) not in self.folder.names("thumbnails"):
            return {}
        with self.folder.open(f"thumbnails/{_shard(number)}") as file:
            return {row["path"]: row["jpeg"] for row in read_parquet(file).to_pylist()}

    def counts(self, number: int) -> Counts:
        """What is in a shard, with its problems, for which its rows are read."""
        return counted(self.read_shard(number, ["path", "error"]))

    def overlay_name(self, key: str, method: str, rank: int = 0) -> str:
        """Where the overlay of a picture lies; `rank` counts the targets of one picture.

        The picture's whole name stays; names too long for the file system end in a digest of themselves.
        """
        *folders, name = key.split("/")
        suffix = f".{method}.jpg" if rank == 0 else f".{method}.{rank + 1}.jpg"
        return "/".join(["overlays", *map(_inside, folders), _fitting(name, suffix)])

    def place(self, name: str) -> str:
        """A file of this run as a person finds it."""
        return (
            str(Path(self.folder.root, name)) if isinstance(self.folder, LocalFolder) else f"{self.folder.root}/{name}"
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors of the disk say which folder they concern, and what remains."""
        try:
            yield
        except OSError as error:
            root, begun = self.folder.root, None
            with suppress(OSError):
                begun = self.folder.read("run.json")
            remedy = f"what is complete in {root!r} stays valid, and the same command goes on from there"
            raise OptionError(
                f"{error.filename or root!r} cannot be written: {error.strerror or error}; "
                f"{remedy if begun else 'make room for it, or choose another folder'}"
            ) from error


def counted(rows: Iterable[Row], shown: int = SHOWN) -> Counts:
    """Count pictures and failures in rows; the rows of a picture follow each other."""
    pictures, failed, last, last_failed = 0, 0, None, None
    problems: list[str] = []
    for row in rows:
        if row["path"] != last:
            pictures, last = pictures + 1, row["path"]
        if row.get("error") is not None and row["path"] != last_failed:
            failed, last_failed = failed + 1, row["path"]
            if len(problems) < shown:
                problems.append(f"{row['path']}: {row['error'].partition(': ')[2] or row['error']}")
    return Counts(pictures, failed, tuple(problems))


def _settings(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Those of each metric in a file of what was measured; nothing if it is none of ours."""
    found: dict[str, Any] = json.loads((metadata or {}).get(_SETTINGS, b"{}"))
    return found


def _shard(number: int) -> str:
    return f"{number:05}.parquet"


def _inside(part: str) -> str:
    """A folder's name that leads to a folder of this run, also for a key that leads upwards."""
    return f"-{hashlib.sha256(part.encode()).hexdigest()[:12]}" if part in {"", ".", ".."} else _fitting(part)


def _fitting(name: str, suffix: str = "") -> str:
    room = _LONGEST_NAME - len(suffix)
    encoded = name.encode()
    if len(encoded) <= room:
        return name + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: room - 13].decode(errors='ignore')}-{digest}{suffix}"

"""The tables of a run: shards of rows, thumbnails, and what was measured; damage and foreign files are named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_kit.errors import InputError, OptionError, raise_interruption
from gradcam_kit.jobs.storage.counts import Counts, counted
from gradcam_kit.jobs.storage.folders import Folder, LocalFolder
from gradcam_kit.jobs.storage.parquet import DamagedTableError, as_parquet, read_parquet
from gradcam_kit.jobs.storage.row_checks import problem_of
from gradcam_kit.jobs.storage.rows import SCHEMA, Row

_SETTINGS = b"gradcam_kit.metrics"
_COUNTED = ("pictures", "failed")
_KEYS = ("path", "method", "rank")
_AT_ONCE = 16  # shards that are looked at


@dataclass(frozen=True)
class ShardFiles:
    """The tables in the folder of one run; `extra` are columns beside `SCHEMA`."""

    folder: Folder
    extra: tuple[pa.Field, ...] = field(default=())

    def complete(self, but: Container[int] = ()) -> dict[int, Counts]:
        """Return the shards that are here and whole, by number, judged by the ends of their files; without problems.

        Args:
            but: numbers that are not looked at.

        Raises:
            InputError: a table that is whole and not one of a run's.
        """
        names = (name.removesuffix(".parquet") for name in self.folder.names("shards") if name.endswith(".parquet"))
        numbers = [number for name in names if name.isdecimal() and (number := int(name)) not in but]
        with ThreadPoolExecutor(_AT_ONCE) as threads:  # remote storage answers slowly, but many questions at once
            found = zip(numbers, threads.map(self._totals, numbers), strict=True)
            return {number: counts for number, counts in found if counts is not None}

    def sound(self, numbers: Iterable[int]) -> set[int]:
        """Return the shards whose bytes are all as they were written, thumbnails included; their rows are read."""
        numbers = list(numbers)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return {
                number for number, holds in zip(numbers, threads.map(self._is_sound, numbers), strict=True) if holds
            }

    def _is_sound(self, number: int) -> bool:
        try:
            if _shard(number) in self.folder.names("thumbnails"):
                self._read("thumbnails", number)
            self.shard_table(number)
        except (DamagedTableError, FileNotFoundError, InputError):
            return False
        return True

    def _read(self, folder: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        with self.folder.open(f"{folder}/{_shard(number)}") as file:
            return read_parquet(file, columns)

    def _totals(self, number: int) -> Counts | None:
        if (footer := self._footer(f"shards/{_shard(number)}")) is None:
            return None
        names = {*footer.schema.to_arrow_schema().names}
        lacking = [name for name in SCHEMA.names if name not in names]
        metadata = footer.metadata or {}
        found = [metadata.get(f"gradcam_kit.{name}".encode(), b"") for name in _COUNTED]
        if lacking or not all(text.isdigit() for text in found):
            place = self.place(f"shards/{_shard(number)}")
            said = (
                f"it has no column {lacking[0]!r} as in a run"
                if lacking
                else "it does not say how many pictures it has"
            )
            raise InputError(f"{place} is not a shard of a run: {said}; move it away, and the run makes its own")
        return Counts(int(found[0]), int(found[1]))

    def shard_place(self, number: int) -> str:
        """Return the file of a shard as a person finds it."""
        return self.place(f"shards/{_shard(number)}")

    def digest(self) -> str:
        """Return the SHA-256 of all rows and measurements that are here, as far as the ends of their files tell.

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
        """Return the metadata at the end of a file of rows; None if it is damaged."""
        try:
            with self.folder.open(name) as file:
                return pq.read_metadata(file)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise_interruption(error)
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
        """Return what was measured later of a shard, and the settings of each metric; nothing if nothing was.

        What a disk has damaged is nothing, and so is what was measured of other rows, while the shard was replaced.
        """
        content = self.folder.read(f"metrics/{_shard(number)}")
        try:
            table = None if content is None else read_parquet(BytesIO(content))
        except DamagedTableError:
            table = None
        settings = {} if table is None else _settings(table.schema.metadata)
        if table is None or not settings:
            return None, {}
        rows = self.shard_table(number, _KEYS)
        own = table.slice(0, rows.num_rows)
        is_of_these = all(key in own.column_names and own[key].equals(rows[key]) for key in _KEYS)
        return (table, settings) if is_of_these else (None, {})

    def measured_later(self) -> dict[str, Any]:
        """Return the metrics that were measured later of some shard, and the settings of each."""
        names = [f"metrics/{name}" for name in self.folder.names("metrics")]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            footers = [footer for footer in threads.map(self._footer, names) if footer is not None]
        return {name: one for footer in footers for name, one in _settings(footer.metadata).items()}

    def check_metrics(self, numbers: Iterable[int]) -> None:
        """Refuse to replace files of others under the names that measurements have.

        Raises:
            OptionError: names the first of them.
        """
        for number in numbers:
            footer = self._footer(f"metrics/{_shard(number)}")
            if footer is not None and not _settings(footer.metadata):
                place = self.place(f"metrics/{_shard(number)}")
                raise OptionError(f"{place} is not what a run measured; move it, or replace it: --overwrite")

    def read_shard(self, number: int, columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of a shard.

        Raises:
            InputError: its file is damaged.
        """
        rows: list[Row] = self.shard_table(number, columns).to_pylist()
        return rows

    def shard_table(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a shard as an Arrow table.

        Raises:
            InputError: its file is damaged.
        """
        table = self._undamaged("shards", number, columns)
        for name in table.column_names:
            if name in SCHEMA.names and table.schema.field(name).type != SCHEMA.field(name).type:
                raise InputError(
                    f"{self.place(f'shards/{_shard(number)}')} is not a shard of a run: its column {name!r} is "
                    f"{table.schema.field(name).type}, expected {SCHEMA.field(name).type}; move it away, and the run "
                    "makes its own"
                )
        if (problem := problem_of(table)) is not None:
            raise self._damaged("shards", number, problem)
        return table

    def read_thumbnails(self, number: int) -> dict[str, bytes]:
        """Return the thumbnails of a shard's pictures by their keys.

        Raises:
            InputError: their file is damaged.
        """
        if _shard(number) not in self.folder.names("thumbnails"):
            return {}
        table = self._undamaged("thumbnails", number, ("path", "jpeg"))
        return {row["path"]: row["jpeg"] for row in table.to_pylist()}

    def _undamaged(self, folder: str, number: int, columns: Sequence[str] | None) -> pa.Table:
        try:
            return self._read(folder, number, columns)
        except DamagedTableError as error:
            raise self._damaged(folder, number, error) from error

    def _damaged(self, folder: str, number: int, problem: object) -> InputError:
        place = self.place(f"{folder}/{_shard(number)}")
        return InputError(
            f"{place} is damaged ({problem}); the command that made the run makes it again, without --overwrite"
        )

    def length(self, number: int) -> int:
        """Return the number of rows of a shard, as the end of its file says."""
        footer = self._footer(f"shards/{_shard(number)}")
        return 0 if footer is None else int(footer.num_rows)

    def counts(self, number: int) -> Counts:
        """Count the pictures in a shard, with its problems, for which its rows are read."""
        return counted(self.read_shard(number, ["path", "error"]))

    def place(self, name: str) -> str:
        """Return a file of this run as a person finds it."""
        return (
            str(Path(self.folder.root, name)) if isinstance(self.folder, LocalFolder) else f"{self.folder.root}/{name}"
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors of the disk say which folder they concern, and what remains."""
        try:
            yield
        except OSError as error:
            raise_interruption(error)
            root, begun = self.folder.root, None
            with suppress(OSError):
                begun = self.folder.read("run.json")
            remedy = f"what is complete in {root!r} stays valid; run the same command to resume"
            raise OptionError(
                f"{error.filename or root!r} cannot be written: {error.strerror or error}; "
                f"{remedy if begun else 'make room for it, or choose another folder'}"
            ) from error


def _settings(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the settings of each metric in a file of measurements; nothing if the file is not ours."""
    try:
        found = json.loads((metadata or {}).get(_SETTINGS, b"{}"))
    except (ValueError, RecursionError):
        return {}
    known = isinstance(found, dict) and all(isinstance(one, dict) for one in found.values())
    return found if known else {}


def _shard(number: int) -> str:
    return f"{number:05}.parquet"

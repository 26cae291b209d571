"""The tables of a run: shards of rows, thumbnails and measurements; damaged and foreign files are reported."""

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
_AT_ONCE = 16  # number of shards inspected concurrently


@dataclass(frozen=True)
class ShardFiles:
    """The tables in the folder of one run; `extra` are columns besides `SCHEMA`."""

    folder: Folder
    extra: tuple[pa.Field, ...] = field(default=())

    def complete(self, but: Container[int] = ()) -> dict[int, Counts]:
        """Return the counts of the intact shards by number, without their problems, which file footers do not hold.

        Args:
            but: numbers to skip.

        Raises:
            InputError: an intact table was not written by a run.
        """
        names = (name.removesuffix(".parquet") for name in self.folder.names("shards") if name.endswith(".parquet"))
        numbers = [number for name in names if name.isdecimal() and (number := int(name)) not in but]
        # remote storage answers slowly, but answers many requests at once
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = zip(numbers, threads.map(self._totals, numbers), strict=True)
            return {number: counts for number, counts in found if counts is not None}

    def sound(self, numbers: Iterable[int]) -> set[int]:
        """Read all rows and thumbnails of some shards, and return the numbers of the shards with fully intact files."""
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
                f"it does not have the column {lacking[0]!r}" if lacking else "it does not state its number of pictures"
            )
            raise InputError(f"{place} is not a shard of a run: {said}; move it away, and the run will write its own")
        return Counts(int(found[0]), int(found[1]))

    def shard_place(self, number: int) -> str:
        """Return the path of a shard's file for messages."""
        return self.place(f"shards/{_shard(number)}")

    def digest(self) -> str:
        """Return a SHA-256 of the footers of all rows and measurements.

        Footers contain the counts, sizes and extreme values of all columns.
        """
        names = [f"{folder}/{name}" for folder in ("shards", "metrics") for name in self.folder.names(folder)]
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for name, footer in zip(names, threads.map(self._footer, names), strict=True):
                if footer is not None:
                    digest.update(repr((name, footer.metadata, footer.to_dict())).encode())
        return digest.hexdigest()

    def _footer(self, name: str) -> pq.FileMetaData | None:
        """Return the metadata at the end of a Parquet file; None if it cannot be read."""
        try:
            with self.folder.open(name) as file:
                return pq.read_metadata(file)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise_interruption(error)
            return None

    def write_shard(self, number: int, rows: Sequence[Row], thumbnails: Mapping[str, bytes]) -> Counts:
        """Write the rows of a shard, after the thumbnails of its pictures, which are given by key."""
        counts = counted(rows)
        metadata = {"gradcam_kit.pictures": str(counts.pictures), "gradcam_kit.failed": str(counts.failed)}
        schema = pa.schema([*SCHEMA, *self.extra], metadata=metadata)
        with self.named():
            if thumbnails:
                small = pa.table({"path": list(thumbnails), "jpeg": pa.array(thumbnails.values(), pa.binary())})
                self.folder.write(f"thumbnails/{_shard(number)}", as_parquet(small))
            self.folder.remove(f"metrics/{_shard(number)}")  # these are measurements of the previous rows
            self.folder.write(f"shards/{_shard(number)}", as_parquet(pa.Table.from_pylist(list(rows), schema=schema)))
        return counts

    def write_metrics(self, number: int, rows: Sequence[Row], fields: Iterable[pa.Field], settings: Any) -> None:
        """Write later measurements of a shard's rows, with the settings of each metric."""
        schema = pa.schema(fields, metadata={_SETTINGS: json.dumps(settings).encode()})
        with self.named():
            self.folder.write(f"metrics/{_shard(number)}", as_parquet(pa.Table.from_pylist(list(rows), schema=schema)))

    def read_metrics(self, number: int) -> tuple[pa.Table | None, dict[str, Any]]:
        """Return later measurements of a shard, with the settings of each metric; `(None, {})` if there are none.

        Damaged files are ignored, and so are measurements of rows that have been replaced since.
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
        """Return the metrics that were measured later for any shard, with their settings."""
        names = [f"metrics/{name}" for name in self.folder.names("metrics")]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            footers = [footer for footer in threads.map(self._footer, names) if footer is not None]
        return {name: one for footer in footers for name, one in _settings(footer.metadata).items()}

    def check_metrics(self, numbers: Iterable[int]) -> None:
        """Refuse to replace foreign files that are named like files of measurements.

        Raises:
            OptionError: such files exist; the message names the first.
        """
        for number in numbers:
            footer = self._footer(f"metrics/{_shard(number)}")
            if footer is not None and not _settings(footer.metadata):
                place = self.place(f"metrics/{_shard(number)}")
                raise OptionError(f"{place} is not a file of measurements; move it, or replace it with --overwrite")

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
                    f"{table.schema.field(name).type}, expected {SCHEMA.field(name).type}; move it away, "
                    "and the run will write its own"
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
            f"{place} is damaged ({problem}); repeat the command of the run, without --overwrite, to rebuild it"
        )

    def length(self, number: int) -> int:
        """Return the number of rows of a shard from the footer of its file."""
        footer = self._footer(f"shards/{_shard(number)}")
        return 0 if footer is None else int(footer.num_rows)

    def counts(self, number: int) -> Counts:
        """Count the pictures of a shard and collect its problems, which requires reading its rows."""
        return counted(self.read_shard(number, ["path", "error"]))

    def place(self, name: str) -> str:
        """Return the path of one of this run's files for messages."""
        return (
            str(Path(self.folder.root, name)) if isinstance(self.folder, LocalFolder) else f"{self.folder.root}/{name}"
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Turn disk errors in the block into errors that name the folder and the remedy."""
        try:
            yield
        except OSError as error:
            raise_interruption(error)
            root, begun = self.folder.root, None
            with suppress(OSError):
                begun = self.folder.read("run.json")
            remedy = f"complete results in {root!r} stay valid; run the same command to resume"
            raise OptionError(
                f"{error.filename or root!r} cannot be written: {error.strerror or error}; "
                f"{remedy if begun else 'make room for it, or choose another folder'}"
            ) from error


def _settings(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the settings of each metric in a file of measurements; empty if this package did not write the file."""
    try:
        found = json.loads((metadata or {}).get(_SETTINGS, b"{}"))
    except (ValueError, RecursionError):
        return {}
    known = isinstance(found, dict) and all(isinstance(one, dict) for one in found.values())
    return found if known else {}


def _shard(number: int) -> str:
    return f"{number:05}.parquet"

"""Read list files and tables of pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_kit.errors import InputError, raise_interruption
from gradcam_kit.jobs.sources.text import check_encoding, not_utf8
from gradcam_kit.jobs.storage.folders import opened
from gradcam_kit.targets.names import normalized

LIST_SUFFIXES = (".txt", ".lst", ".list")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

_Rows = Iterator[tuple[str, str | None]]


def listed_rows(source: str) -> _Rows:
    """Yield the paths and labels in a list file or table; a table row without a path yields an empty path.

    Args:
        source: a list file or table, on this machine or on remote storage.

    Raises:
        InputError: the file cannot be read, or the table has no column of paths.
    """
    suffix = PurePosixPath(source).suffix.lower()
    try:
        with opened(source) as file:
            if suffix == ".parquet":
                yield from _parquet_rows(source, file)
                return
            check_encoding(source, file.read(4096))
            file.seek(0)
            with TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
                if suffix in TABLE_SUFFIXES:
                    yield from _csv_rows(source, text, "\t" if suffix == ".tsv" else ",")
                else:
                    yield from ((line.strip(), None) for line in text if line.strip())
    except (OSError, pa.ArrowException) as error:
        raise_interruption(error)
        raise InputError(f"{source!r} cannot be read: {error}") from error


def _csv_rows(source: str, text: Iterable[str], separator: str) -> _Rows:
    table = csv.DictReader(text, delimiter=separator)
    try:
        table.fieldnames = [normalized(name) for name in table.fieldnames or ()]
        _require_path(source, table.fieldnames)
        for row in table:
            label = normalized(row.get("label") or "") or None
            if label is not None and not label.isprintable() and any("\udc80" <= sign <= "\udcff" for sign in label):
                raise not_utf8(source, f"the label in line {table.line_num}")
            yield row["path"] or "", label
    except csv.Error as error:
        raise InputError(f"the table {source!r} cannot be read: line {table.line_num}: {error}") from error


def _parquet_rows(source: str, file: Any) -> _Rows:
    with pq.ParquetFile(file, pre_buffer=False) as table:
        written = {normalized(name): name for name in reversed(table.schema_arrow.names)}
        _require_path(source, written)
        columns = [written[name] for name in ("path", "label") if name in written]
        # Without threads, for the reason in `storage.parquet.read_parquet`.
        for batch in table.iter_batches(columns=columns, use_threads=False):
            for row in batch.to_pylist():
                label = row.get(written.get("label"))
                yield str(row[written["path"]] or ""), None if label is None else normalized(str(label)) or None


def _require_path(source: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if "path" not in columns:
        separated = any(sign in name for name in columns for sign in ";\t|")
        raise InputError(
            f"the table {source!r} has no column 'path'; its columns are {', '.join(columns) or 'none'}"
            + ("; separate columns by commas, or by tabs in a .tsv file" if separated else "")
        )

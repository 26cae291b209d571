"""What list files and tables say about pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_kit.errors import InputError


def listed_rows(source: str) -> Iterator[tuple[str, str | None]]:
    """Paths and labels as they are written; a row of a table that has no path gives an empty one.

    Raises:
        InputError: a table without paths, or one that cannot be read.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(source)
    elif suffix == ".csv":
        with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file)
            try:
                _require_path(source, table.fieldnames or ())
                for row in table:
                    yield row["path"] or "", row.get("label") or None
            except csv.Error as error:
                raise InputError(f"the table {source!r} cannot be read: line {table.line_num}: {error}") from error
    else:
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if line.strip():
                    yield line.strip(), None


def _parquet_rows(source: str) -> Iterator[tuple[str, str | None]]:
    try:
        with pq.ParquetFile(source) as table:
            _require_path(source, table.schema_arrow.names)
            columns = [name for name in ("path", "label") if name in table.schema_arrow.names]
            for batch in table.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    label = row.get("label")
                    yield str(row["path"] or ""), None if label is None else str(label)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"the table {source!r} cannot be read: {error}") from error


def _require_path(source: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if "path" not in columns:
        raise InputError(f"the table {source!r} has no column 'path'; its columns are {', '.join(columns) or 'none'}")

"""Read and write tables as Parquet files, without threads that could outlive the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_kit.errors import raise_interruption

_DAMAGE = (OSError, pa.ArrowException, ValueError, KeyError, OverflowError, MemoryError)
"""Exceptions that Arrow raises for damaged files while decompressing and decoding; it has no special type for this."""


class DamagedTableError(Exception):
    """A file of rows that cannot be read completely."""


def as_parquet(table: pa.Table) -> bytes:
    """Return a table as the content of a Parquet file, in which each page has a checksum."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_parquet(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a Parquet file that is open for reading, with the given columns or all.

    Only this thread reads. An Arrow thread that still holds a Python file when the interpreter exits aborts or hangs
    the process (apache/arrow#50482), so the exit status would report a failure although all results are written.

    Raises:
        DamagedTableError: the file was damaged on disk or in transfer.
    """
    try:
        with pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True) as table:
            return table.read(columns=columns, use_threads=False)
    except _DAMAGE as error:
        raise_interruption(error)
        raise DamagedTableError(" ".join(str(error).split())) from error

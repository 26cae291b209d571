"""Tables as Parquet files, read and written without a thread that could outlive the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def as_parquet(table: pa.Table) -> bytes:
    """The content of a file."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file that is open for reading, all columns or some.

    Only this thread reads: a thread of Arrow's that still holds a Python file when the interpreter ends aborts the
    process or hangs (apache/arrow#50482), with all results written and an exit status that says otherwise.
    """
    with pq.ParquetFile(file, pre_buffer=False) as table:
        return table.read(columns=columns, use_threads=False)

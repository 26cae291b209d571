"""Tables for spreadsheets: CSV in which text is never read as a formula."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of a text that a spreadsheet may compute or split, including the full-width forms of four signs."""


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as CSV with a header; missing values, None and NaN are empty cells.

    Text that begins like a formula gets a leading apostrophe, because otherwise a spreadsheet could compute the
    name of a picture as a formula.

    Example:
        >>> csv_text(["image"], [{"image": "=1+1.png"}])
        "image\\r\\n'=1+1.png\\r\\n"
    """
    columns = list(columns)
    buffer = StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(map(_cell, columns))
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet could read a text as a formula, even after blanks or invisible characters."""
    seen = next((i for i, sign in enumerate(text) if not _is_unseen(sign)), len(text))
    return text.startswith(_FORMULA) or text[seen:].startswith(_FORMULA)


def _is_unseen(sign: str) -> bool:
    return sign.isspace() or unicodedata.category(sign) in ("Cf", "Cc")

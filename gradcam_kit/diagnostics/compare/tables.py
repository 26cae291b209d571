"""Format the tables of comparisons as text and as pandas data frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradcam_kit.errors import missing_extra

if TYPE_CHECKING:
    import pandas


def frame(*args: Any, **options: Any) -> pandas.DataFrame:
    """Return a pandas `DataFrame`.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise missing_extra("to_pandas() needs pandas", "diagnostics") from error
    return pd.DataFrame(*args, **options)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a table, with numbers aligned right, text aligned left, and three digits for floats."""
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]


def shown(value: Any) -> str:
    """Format a value for a table; None and NaN become a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""Write event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, SupportsFloat, SupportsInt

import numpy as np

from gradcam_kit.diagnostics.writers.protocol import clean_name, compact, picture_of
from gradcam_kit.errors import InputError, kind_of, missing_extra


class TensorBoardWriter:
    """Write event files for TensorBoard; histograms are stored as counts, without the values.

    Args:
        dir_or_writer: a folder, or your own `SummaryWriter`, which stays open when this writer is closed.

    Raises:
        MissingExtraError: tensorboard is not installed.
        InputError: `dir_or_writer` is neither a folder nor a `SummaryWriter`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = TensorBoardWriter(folder)
        ...     writer.scalar("loss", 0.5, 1)
        ...     writer.close()
    """

    def __init__(self, dir_or_writer: Any) -> None:
        self._is_own = isinstance(dir_or_writer, str | PathLike)
        if self._is_own:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise missing_extra("TensorBoardWriter needs tensorboard", "loggers") from error
            dir_or_writer = SummaryWriter(str(dir_or_writer))
        elif not hasattr(dir_or_writer, "add_histogram_raw"):
            raise InputError(
                f"dir_or_writer is {kind_of(dir_or_writer)}; expected a folder, or a torch.utils.tensorboard writer"
            )
        self._writer = dir_or_writer

    def scalar(self, name: object, value: SupportsFloat, step: SupportsInt) -> None:
        """Add one number."""
        self._writer.add_scalar(clean_name(name), float(value), int(step))

    def histogram(self, name: object, edges: Any, counts: Any, step: SupportsInt) -> None:
        """Add counts in at most 1,024 bins; sums are estimated from the centers of the bins."""
        limits, filled = compact(edges, counts, 1024)
        middles = (limits[:-1] + limits[1:]) / 2
        self._writer.add_histogram_raw(
            clean_name(name),
            min=float(limits[0]),
            max=float(limits[-1]),
            num=int(filled.sum()),
            sum=float(np.dot(filled, middles)),
            sum_squares=float(np.dot(filled, middles**2)),
            bucket_limits=limits[1:].tolist(),
            bucket_counts=filled.tolist(),
            global_step=int(step),
        )

    def image(self, name: object, hwc: Any, step: SupportsInt) -> None:
        """Add one picture."""
        self._writer.add_image(clean_name(name), picture_of(hwc), int(step), dataformats="HWC")

    def table(self, name: object, rows: Iterable[Mapping[str, Any]], step: SupportsInt) -> None:
        """Add a table as text."""
        rows = [dict(row) for row in rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines) if columns else "(no rows)"
        self._writer.add_text(clean_name(name), text, int(step))

    def close(self) -> None:
        """Flush pending records; close the files that this writer opened."""
        if self._is_own:
            self._writer.close()
        else:
            self._writer.flush()


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return " ".join(text.split()).replace("|", "\\|")

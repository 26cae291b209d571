"""Write to an existing run of Weights & Biases, online or offline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsInt

from gradcam_kit.diagnostics.writers.files import strict
from gradcam_kit.diagnostics.writers.protocol import clean_name, compact, picture_of
from gradcam_kit.errors import InputError, kind_of, missing_extra

STEP = "diagnostics_step"
"""The key of the step, the horizontal axis of everything that this writer logs."""
_MOST_BINS = 512  # maximum number of bins that the service accepts


class WandbWriter:
    """Log to an existing run, without starting a run or logging in.

    A run has a single step counter, and drops records of earlier steps. Therefore, this writer uses its own step:
    its records carry `diagnostics_step`, and are added to the row that your next `run.log` completes.

    Args:
        run: the result of `wandb.init(...)`.

    Raises:
        MissingExtraError: wandb is not installed.
        InputError: `run` is not a run.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)):
            raise InputError(
                f"run is {kind_of(run)}; expected a run of Weights & Biases. This writer never starts one: pass "
                "the result of wandb.init()"
            )
        try:
            import wandb
        except ImportError as error:
            raise missing_extra("WandbWriter needs wandb", "loggers") from error
        self._wandb, self._run = wandb, run
        self._step: int | None = None
        self._row: int | None = None
        self._known: set[str] = set()

    def scalar(self, name: object, value: SupportsFloat, step: SupportsInt) -> None:
        """Log one number."""
        self._log(name, float(value), step)

    def histogram(self, name: object, edges: Any, counts: Any, step: SupportsInt) -> None:
        """Log counts in at most 512 bins."""
        limits, filled = compact(edges, counts, _MOST_BINS)
        self._log(name, self._wandb.Histogram(np_histogram=(filled, limits)), step)

    def image(self, name: object, hwc: Any, step: SupportsInt) -> None:
        """Log one picture."""
        self._log(name, self._wandb.Image(picture_of(hwc)), step)

    def table(self, name: object, rows: Iterable[Mapping[str, Any]], step: SupportsInt) -> None:
        """Log a table; values that are neither numbers nor text are shown as text."""
        rows = [dict(row) for row in rows]
        columns: list[Any] = list(dict.fromkeys(str(key) for row in rows for key in row))
        cells: list[Any] = [[_cell(strict(row.get(key))) for key in columns] for row in rows]
        self._log(name, self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True), step)

    def close(self) -> None:
        """End the row that is still open; the run itself continues."""
        self._end_row()

    def _log(self, name: object, value: Any, step: SupportsInt) -> None:
        step = int(step)
        key = clean_name(name)
        if key not in self._known:
            self._known.add(key)
            self._run.define_metric(key, step_metric=STEP)
        if step != self._step:
            self._end_row()
        self._run.log({key: value, STEP: step}, commit=False)
        self._step, self._row = step, self._run.step

    def _end_row(self) -> None:
        """End the open row before values of the next step replace its values, unless the user has ended it already."""
        if self._row is not None and self._row == self._run.step:
            self._run.log({}, commit=True)
        self._row = None


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

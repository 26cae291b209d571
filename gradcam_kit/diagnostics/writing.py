"""Pass the numbers of a window to writers; a failing writer never stops the training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import edges, ordered
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.errors import InputError, kind_of, raise_interruption

_log = logging.getLogger("gradcam_kit")
_METHODS = ("scalar", "histogram", "image", "table")


class GuardedWriters:
    """One or several writers; a writer that fails is dropped with one warning, and the others continue.

    Args:
        given: a writer, a sequence of writers, or None. A writer that lacks a method does not receive
            the records of that method.

    Raises:
        InputError: an object that has none of the methods of a writer.
    """

    def __init__(self, given: Any) -> None:
        self.writers = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        for writer in self.writers:
            if not any(callable(getattr(writer, method, None)) for method in _METHODS):
                raise InputError(
                    f"writer is {kind_of(writer)}; expected an object with scalar(name, value, step), such as "
                    "JsonWriter(folder) or TensorBoardWriter(folder)"
                )

    def __bool__(self) -> bool:
        return bool(self.writers)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Pass a number to every writer."""
        self._call("scalar", name, value, step)

    def histogram(self, name: str, limits: Any, counts: Any, step: int) -> None:
        """Pass a histogram to every writer."""
        self._call("histogram", name, limits, counts, step)

    def image(self, name: str, hwc: Any, step: int) -> None:
        """Pass a picture to every writer."""
        self._call("image", name, hwc, step)

    def table(self, name: str, rows: Any, step: int) -> None:
        """Pass a table to every writer."""
        self._call("table", name, rows, step)

    def close(self) -> None:
        """Close every writer."""
        self._call("close")

    def _call(self, method: str, *args: Any) -> None:
        for writer in [*self.writers]:
            function = getattr(writer, method, None)
            if function is None:
                continue
            try:
                function(*args)
            except Exception as error:  # a failing writer must not stop the training
                raise_interruption(error)
                self.writers.remove(writer)
                _log.warning(
                    "the writer %s failed and is dropped: %s: %s", type(writer).__name__, type(error).__name__, error
                )


class WindowWriter:
    """Passes each window of a block to the writers: numbers, histograms of the window, and changed findings."""

    def __init__(self, writers: GuardedWriters) -> None:
        self.writers = writers
        self.restart()

    def restart(self) -> None:
        """Forget what was written, because observing starts over."""
        self._before: dict[str, Any] = {}
        self._findings: set[tuple[Any, ...]] = set()

    def write(self, ledger: Ledger, report: Callable[[], Report], *, at_end: bool = False) -> None:
        """Write the last closed window; with `at_end`, write the open window and the tables of the report."""
        if not self.writers:
            return
        step, limits = ledger.steps, edges()
        for track in sorted(ledger.tracks.values(), key=lambda track: track.order):
            window = track.open if at_end else track.closed
            if window is None or not (window.moments.elements or window.gradient_norms):
                continue
            if window.moments.finite:
                self.writers.scalar(f"{track.name}/mean", window.moments.mean, step)
                self.writers.scalar(f"{track.name}/std", window.moments.std, step)
            if window.gradient_norms:
                self.writers.scalar(f"{track.name}/gradient_norm", window.gradient_norm, step)
            for name, counts in ((track.name, track.counts), (f"{track.name}/gradient", track.gradient_counts)):
                before = self._before.get(name, 0)
                if (counts != before).any():
                    self.writers.histogram(name, limits, ordered(counts - before), step)
                    self._before[name] = counts.copy()
        for parameter in ledger.parameters.values():
            if parameter.update.seen and not math.isnan(parameter.update.value):
                self.writers.scalar(f"{parameter.name}/update_ratio", parameter.update.value, step)
        self._tables(report(), step, at_end)

    def _tables(self, report: Report, step: int, at_end: bool) -> None:
        findings: set[tuple[Any, ...]] = {(one.level, one.kind, one.layer) for one in report.findings}
        if at_end or findings != self._findings:
            self._findings = findings
            self.writers.table("findings", [one.to_dict() for one in report.findings], step)
        if at_end:
            self.writers.table("layers", [asdict(row) for row in report.layers], step)
            self.writers.table("parameters", [asdict(row) for row in report.parameters], step)

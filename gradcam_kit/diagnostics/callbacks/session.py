"""Start, pause and end the observation of a training run, independently of its loop."""

from __future__ import annotations

import inspect
import logging
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.watching import ModelDiagnostics
from gradcam_kit.diagnostics.writers.files import JsonWriter
from gradcam_kit.diagnostics.writing import GuardedWriters
from gradcam_kit.errors import CaptureError, OptionError, did_you_mean

_log = logging.getLogger("gradcam_kit")
_OPTIONS = tuple(
    name for name in inspect.signature(ModelDiagnostics).parameters if name not in ("model", "optimizer", "writer")
)


class Session:
    """Observes one training run, and writes its report; in distributed training, only rank 0 writes.

    Args:
        out: folder for `diagnostics.jsonl` and, at the end, `diagnostics.html`; None writes no files.
        writer: a `Writer` or a sequence of writers, which are closed at the end.
        heatmaps: a `HeatmapLogger`, or any object with a `step()` method, which `Session.step` calls; or None.
        options: options of `ModelDiagnostics`.

    Raises:
        OptionError: an option that `ModelDiagnostics` does not have.
        InputError: a writer that has none of the methods of `Writer`.
    """

    def __init__(self, out: str | PathLike[str] | None, writer: Any, heatmaps: Any, options: dict[str, Any]) -> None:
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            hint = did_you_mean(unknown[0], _OPTIONS) or f"; it has {', '.join(_OPTIONS)}"
            raise OptionError(f"ModelDiagnostics has no option {unknown[0]!r}{hint}")
        self.out = None if out is None else Path(out)
        self.heatmaps, self.options = heatmaps, options
        self._given = list(writer) if isinstance(writer, list | tuple) else [] if writer is None else [writer]
        GuardedWriters(self._given)  # reject invalid writers before training begins
        self.diagnostics: ModelDiagnostics | None = None
        self._writers: list[Any] = []
        self._is_running = False
        self._pause: AbstractContextManager[None] | None = None

    def start(self, model: Any, optimizer: Any, **found: Any) -> ModelDiagnostics:
        """Start observing a training run, and stop observing the previous one if it was not stopped."""
        self.stop(failed=True)
        self._writers = [*self._given, *([JsonWriter(self.out)] if self.out is not None else [])] if is_first() else []
        options = {**found, **self.options}
        self.diagnostics = ModelDiagnostics(model, optimizer=optimizer, writer=self._writers, **options)
        self.diagnostics.start()
        self._is_running = True
        return self.diagnostics

    def pause(self) -> None:
        """Pause observing until `resume` is called."""
        if self.diagnostics is not None and self._is_running and self._pause is None:
            self._pause = self.diagnostics.pause()
            self._pause.__enter__()

    def resume(self) -> None:
        """Resume observing."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.__exit__(None, None, None)

    def step(self) -> None:
        """Call `step()` of the `HeatmapLogger` on rank 0, while observing."""
        if self.heatmaps is not None and self._is_running and is_first():
            self.heatmaps.step()

    def stop(self, *, failed: bool) -> None:
        """Stop observing, merge the ranks unless training failed, and write the report; a no-op if not running."""
        if self.diagnostics is None or not self._is_running:
            return
        self._is_running = False
        self.resume()
        try:
            self.diagnostics.stop()
        finally:
            if not failed:  # after a failure, other ranks may never reach the merge
                self.diagnostics = merged(self.diagnostics)
            self._leave(self.diagnostics)

    def report(self) -> Report:
        """Return the findings and the tables; may be called during training.

        Raises:
            CaptureError: training has not begun.
        """
        if self.diagnostics is None:
            raise CaptureError("nothing was observed, because training has not begun; call report() once it has begun")
        return self.diagnostics.report()

    def _leave(self, diagnostics: ModelDiagnostics) -> None:
        if not is_first():
            return
        GuardedWriters(self._writers).close()
        report = diagnostics.report()
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            diagnostics.to_html(self.out / "diagnostics.html")
        bad = [str(finding) for finding in report.findings if finding.level == "bad"]
        _log.log(logging.WARNING if bad else logging.INFO, "\n".join([report.summary, *bad]))


class SessionCallback:
    """Base of the callbacks: holds one session, and exposes its diagnostics and report."""

    def __init__(
        self,
        *,
        out: str | PathLike[str] | None = None,
        writer: Any = None,
        heatmaps: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._session = Session(out, writer, heatmaps, options)

    @property
    def diagnostics(self) -> ModelDiagnostics | None:
        """The diagnostics of the current or last training run; None before the first one."""
        return self._session.diagnostics

    def report(self) -> Report:
        """Return the findings and the tables; may be called during training.

        Raises:
            CaptureError: training has not begun.
        """
        return self._session.report()


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not _is_distributed() or distributed.get_rank() == 0


def merged(diagnostics: ModelDiagnostics) -> ModelDiagnostics:
    """Return the merged diagnostics on rank 0, and the unmerged ones on other ranks; every rank must call this."""
    if not _is_distributed():
        return diagnostics
    gathered: list[Any] | None = [None] * distributed.get_world_size() if is_first() else None
    distributed.gather_object(diagnostics.state_dict(), gathered)
    for other in (gathered or [])[1:]:
        diagnostics = diagnostics.merge(other)
    return diagnostics


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

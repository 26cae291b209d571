"""Show the progress of commands: as bars on a terminal, elsewhere as plain lines or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gradcam_kit.capture import counting_rows


class ProgressBar:
    """A context manager that shows the number of finished pictures, the speed, failures and the time left.

    While slow methods and metrics work on a picture, it also shows how many masked or otherwise changed images ran.

    Args:
        console: where to show the progress, if it is a terminal.
        total: the number of pictures.
        doing: the word in front of the bar, such as "measuring".
    """

    def __init__(self, console: Console, total: int, doing: str = "explaining") -> None:
        self._entered = ExitStack()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed("{task.fields}"),
            TimeRemainingColumn(),
            console=console,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(doing, total=total, failed=0, rows=0)

    def add(self, pictures: int, failed: int) -> None:
        """Add finished pictures, and the failures among them, to the counts."""
        failed += self._progress.tasks[0].fields["failed"]
        self._progress.update(self._task, advance=pictures, failed=failed, rows=0)

    def _count(self, rows: int) -> None:
        self._progress.update(self._task, rows=self._progress.tasks[0].fields["rows"] + rows)

    def __enter__(self) -> ProgressBar:
        self._entered.enter_context(self._progress)
        if not self._progress.disable:
            self._entered.enter_context(counting_rows(self._count))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()


class MethodProgress:
    """A context manager that shows the running method and how many masked or otherwise changed images it has run.

    On a terminal, a bar advances after each method, and the number of these images grows during a method. Elsewhere,
    there is no bar, but a line still reports each finished method.

    Args:
        console: terminal on which to show the progress; None = nowhere.
        total: the number of methods.
    """

    def __init__(self, console: Console | None, total: int) -> None:
        self._console = console
        self._rows = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]}"),
            TimeElapsedColumn(),
            console=console,
            disable=console is None or not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("methods", total=total, rows="")

    @contextmanager
    def method(self, name: str) -> Iterator[None]:
        """Show the method that runs in this block, and count the masked or otherwise changed images that it runs."""
        self._rows = 0
        self._progress.update(self._task, description=name, rows="")
        start = time.perf_counter()
        with counting_rows(self._count):
            yield
        self._progress.update(self._task, advance=1)
        if self._console is not None:
            line = f"{name}: {time.perf_counter() - start:.2f} s"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def skip(self) -> None:
        """Advance the bar by one for a skipped method."""
        self._progress.update(self._task, advance=1)

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._progress.update(self._task, rows=f"{self._rows:,} masked images")

    def __enter__(self) -> MethodProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Speed(TextColumn):
    def render(self, task: object) -> Text:
        speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
        fields = getattr(task, "fields", {})
        failed, rows = fields.get("failed", 0), fields.get("rows", 0)
        words = [
            f"{speed:.1f} pictures/s" if speed else "",
            f"{failed} failed" if failed else "",
            f"{rows:,} masked images" if rows else "",
        ]
        return Text(", ".join(filter(None, words)))

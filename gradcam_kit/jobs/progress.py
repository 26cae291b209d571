"""The progress of a run: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class ProgressBar:
    """Shows pictures done, pictures per second, failures and the time left; a context manager."""

    def __init__(self, console: Console, total: int, doing: str = "explaining") -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed("{task.fields}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(doing, total=total, failed=0)

    def add(self, pictures: int, failed: int) -> None:
        """Count pictures."""
        self._progress.update(self._task, advance=pictures, failed=self._progress.tasks[0].fields["failed"] + failed)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Speed(TextColumn):
    def render(self, task: object) -> Text:
        speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
        failed = getattr(task, "fields", {}).get("failed", 0)
        words = [f"{speed:.1f} pictures/s" if speed else "", f"{failed} failed" if failed else ""]
        return Text(", ".join(filter(None, words)))

"""What a terminal shows while a command works: pictures, and within slow methods the masked images."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import disk
import pytest
from rich.console import Console
from rich.progress import Progress

from gradcam_kit.capture import counting_rows
from gradcam_kit.jobs import RunRequest, evaluate, progress, run
from gradcam_kit.jobs.compare import SheetRequest, render_sheet
from gradcam_kit.jobs.evaluate import EvaluateRequest


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.CAT)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every state of the bar in words."""
    found: list[str] = []

    class Told(Progress):
        def update(self, *args: object, **values: object) -> None:
            super().update(*args, **values)
            task = self.tasks[0]
            found.append(
                f"{task.description}: {task.completed:g} of {task.total:g}, {progress._Speed('').render(task)}"
            )

    monkeypatch.setattr(progress, "Progress", Told)
    return found


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def masked(lines: list[str]) -> list[int]:
    return [int(number.replace(",", "")) for line in lines for number in re.findall(r"([\d,]+) masked images", line)]


def test_a_slow_method_is_seen_at_work(shown: list[str]) -> None:
    asked = RunRequest("shop:net", source="pictures", out="out", methods=("score-cam",), batch_size=1, workers=1)
    assert run(asked, terminal()).explained == 2
    first = shown[: next(place for place, line in enumerate(shown) if "1 of 2" in line)]
    assert masked(first) == sorted(set(masked(first)))
    assert masked(first)[-1] > 1
    assert masked(shown)[len(masked(first))] == masked(first)[0]  # counted anew for the next picture
    assert shown[-1].startswith("explaining: 2 of 2")
    assert "masked" not in shown[-1]


def test_metrics_and_comparisons_are_seen_at_work(shown: list[str]) -> None:
    run(RunRequest("shop:net", source="pictures", out="out", workers=1))
    shown.clear()
    evaluate(EvaluateRequest("out", model="shop:net", metrics=("deletion",), workers=1), terminal())
    assert masked(shown)
    assert shown[-1].startswith("measuring: 2 of 2")
    shown.clear()
    Path("pictures/b.png").write_bytes(b"no picture")
    sheet = SheetRequest("shop:net", sources=("pictures",), out=Path("methods.png"), methods=("score-cam",))
    assert render_sheet(sheet, terminal()).failed == 1
    assert masked(shown)
    assert shown[-1].startswith("comparing: 2 of 2")
    assert shown[-1].endswith("1 failed")


def test_without_a_terminal_whoever_listens_hears_the_rows() -> None:
    heard: list[int] = []
    with counting_rows(heard.append):
        run(
            RunRequest("shop:net", source="pictures", out="out", methods=("score-cam",), workers=1), Console(quiet=True)
        )
    assert sum(heard) > 2

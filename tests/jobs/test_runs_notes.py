"""What a run tells about labels and outputs that are probably not what was meant."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest
from rich.console import Console

from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.labels import Labels


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def notes_of(model: str = "shop:net", **options: Any) -> str:
    console = Console(record=True, file=io.StringIO(), width=500)
    run_and_report(RunRequest(model, source="pictures", out="out", workers=1, overlays=0, **options), console)
    return console.export_text()


def test_labels_that_name_no_class_are_said_and_counted_beside_the_accuracy() -> None:
    for name in ("cat/a.png", "catt/a.png", "cup/a.png", "top.png"):
        disk.write_picture(Path("pictures", name), disk.CAT)
    assert "note: accuracy leaves out 1 of 3 labels, which match no class of the model" in (said := notes_of())
    assert "'catt'; did you mean 'cat'?" in said
    page = Path("out/report.html").read_text()
    assert "right, of 2 with a label that names a class</dt>" in page
    assert "with a label that names no class</dt><dd>1</dd>" in page


def test_labels_that_all_name_classes_need_no_word() -> None:
    for name in ("cat/a.png", "cup/a.png", "top.png"):
        disk.write_picture(Path("pictures", name), disk.CAT)
    assert "match no class" not in notes_of()
    page = Path("out/report.html").read_text()
    assert "right, of 2 with a label</dt>" in page
    assert "names no class" not in page


@pytest.mark.parametrize(
    ("names", "labels", "says"),
    [
        (["a", "b"], ["a", "x", "x", "y", "z", "w"], "5 of 6 labels, which match no class .*: 'x', 'y', 'z'$"),
        (["a", "b"], ["1", "2", None], "1 of 2 labels, .*: '2'$"),
        (None, ["cat", "1"], "1 of 2 labels, .*: 'cat'$"),
    ],
)
def test_only_labels_without_a_class_are_counted(names: list[str] | None, labels: list[str | None], says: str) -> None:
    entries = [Entry(f"{i}.png", "", label) for i, label in enumerate(labels)]
    line = Labels(names).unknown(entries)
    assert line is not None
    assert re.search(says, line)


@pytest.mark.parametrize(
    ("model", "pictures", "says"),
    [
        ("softmax", 1, "(from 0 to 1, and their sum is 1); methods expect logits: leave out the last"),
        ("sigmoid", 4, "(from 0 to 1); methods expect logits: leave out the last sigmoid"),
        ("sigmoid", 1, "(from 0 to 1); methods expect logits: leave out the last sigmoid"),  # by its last operation
        ("net", 4, None),
        ("one_logit", 7, None),
    ],
)
def test_outputs_that_look_like_probabilities_are_said(model: str, pictures: int, says: str | None) -> None:
    for i in range(pictures):
        disk.write_picture(Path(f"pictures/{i}.png"), np.roll(disk.CAT, 7 * i, 0))
    said = notes_of(f"shop:{model}", report=False)
    assert ("look like probabilities" in said) == (says is not None)
    assert says is None or f"the outputs of shop:{model} look like probabilities {says}" in said

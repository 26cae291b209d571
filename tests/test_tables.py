"""Tables that spreadsheets open: no text in them is computed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from gradcam_kit import compare
from gradcam_kit.comparison import write_comparisons
from gradcam_kit.tables import csv_text

FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u200b=1", "＝1+1", "－1", "\ufeff@x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_is_a_formula_is_a_text(text: str) -> None:
    content = csv_text(["path", text], [{"path": text, text: text}])
    header, row = _rows(content)
    assert (header[1], row) == (f"'{text}", [f"'{text}", f"'{text}"])


def _rows(content: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content, newline="")))


def test_numbers_and_plain_texts_stay() -> None:
    content = csv_text("abcde", [{"a": -1, "b": -0.5, "c": "a=b", "d": float("nan"), "e": None}])
    assert _rows(content) == [["a", "b", "c", "d", "e"], ["-1", "-0.5", "a=b", "", ""]]


def test_a_comparison_guards_names_of_pictures_and_classes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    names, classes = ["@evil.png", "good.png"], ["=cmd|' /C calc'!A0", "+1"]
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = compare(model.eval(), images, ["eigen-cam"], "1", targets=0, names=names, class_names=classes, cost=False)
    write_comparisons(tmp_path / "new/rows.csv", [found])
    table = _rows((tmp_path / "new/rows.csv").read_text())
    assert [row[0] for row in table] == ["image", "'@evil.png", "good.png"]
    assert {row[table[0].index("target_name")] for row in table[1:]} == {"'=cmd|' /C calc'!A0"}

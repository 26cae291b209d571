"""docs/design.md: the files that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.results import load

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs/design.md").read_text())))
THERE = {
    "/" + path.relative_to(ROOT).as_posix() + "/" * path.is_dir()
    for top in ("gradcam_kit", "tests", "docs")
    for path in (ROOT / top, *(ROOT / top).rglob("*"))
}


@pytest.mark.parametrize("name", NAMED)
def test_a_file_or_folder_that_the_page_names_is_there(name: str) -> None:
    assert any(path.endswith(f"/{name}") for path in THERE)


@pytest.mark.parametrize(("trick", "file"), [("packed weights", "memory_format.py"), ("rows copied", "lazy_rows.py")])
def test_what_a_trick_gains_is_what_was_measured(trick: str, file: str) -> None:
    [row] = [
        row for row in load(ROOT / "benchmarks/results/tricks-cpu.json").rows if row.case["work"].startswith(trick)
    ]
    [line] = [
        line for line in (ROOT / "docs/design.md").read_text().splitlines() if f"/{file}`" in line and "takes" in line
    ]
    ratio = row.figures["ratio"].median
    assert f"takes {ratio:.2f} of the time" in line
    assert ratio < 0.9, "a trick that gains less than a tenth goes"

"""docs/design.md: the files that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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

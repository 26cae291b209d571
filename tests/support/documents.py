"""Examples of the documentation, as they are written there."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language, in the order of the page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_examples(page: Path) -> dict[str, object]:
    """Run the Python blocks in order, compare shapes with their comments, and return the names that are left."""
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
        for name, shape in re.findall(r"^(\w+) = .*#.*?\((\d[\d, ]*)\)", block, re.MULTILINE):
            assert tuple(names[name].shape) == tuple(map(int, shape.split(", "))), name  # type: ignore[attr-defined]
    return names

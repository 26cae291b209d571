"""The reference is filled from the code, and says of every method what a reader looks for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS

from gradcam_kit.methods import METHODS
from gradcam_kit.methods.recommended import recommended
from gradcam_kit.metrics import METRICS
from gradcam_kit.pixels.decoding import read_picture


@pytest.fixture(scope="module")
def hooks() -> Any:
    specification = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_method_has_formula_cost_use_and_picture(hooks: Any) -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", hooks.methods(), re.DOTALL | re.MULTILINE))
    assert sections.keys() == METHODS.keys()
    for name, text in sections.items():
        assert f"**Good for:** {recommended()[name]}." in text
        assert f"`{METHODS[name].__name__}` · {METHODS[name].cost or 'F'} · " in text
        assert "$" in text, f"{name} has no formula"
        [shown] = re.findall(r'<img src="\.\./gallery/(\S+)"', text)
        assert read_picture(DOCS / "gallery" / shown).shape == (128, 128, 3)


def test_every_metric_and_command_is_listed(hooks: Any) -> None:
    assert set(re.findall(r"^\| `(\S+)` \|", hooks.metrics(), re.MULTILINE)) == METRICS.keys()
    commands = hooks.commands()
    assert "## run" in commands
    assert "Example: `gradcam-kit run" in commands


def test_the_stored_pages_are_what_the_code_says(hooks: Any) -> None:
    pages = hooks.reference()
    assert {path.stem for path in pages} == {"cli", "methods", "metrics"}
    for path, text in pages.items():
        assert text.count("\n") > 30
        stored = path.read_text(encoding="utf-8")
        assert _without_kinds(stored) == _without_kinds(text), "run: python docs/hooks.py"


def _without_kinds(text: str) -> str:
    """Return the text without the kinds of values, which versions of typer write differently: TEXT, <str>."""
    return re.sub(r"[{}\[\]]| ?(?:<[a-z]+>|TEXT|INTEGER|FLOAT)(?=`| |$)", "", text, flags=re.MULTILINE)


def test_pictures_of_the_site_are_small() -> None:
    pictures = [path for path in DOCS.rglob("*") if path.suffix in (".jpg", ".png", ".gif", ".svg")]
    gallery = [path for path in pictures if "gallery" in path.parts]
    assert sum(path.stat().st_size for path in gallery) < 3_000_000
    for path in Path(DOCS).glob("*.jpg"):
        assert path.stat().st_size < 150_000, path

"""The hook that makes pages of the notebooks: outputs as they are stored, links that lead within the site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_shows_what_is_stored(hooks: Any, path: Path) -> None:
    files = hooks.notebook_files(path)
    page = files.pop(f"{path.stem}.md")
    assert page.startswith("# ")
    pictures = re.findall(r"!\[What the cell shows\]\(([^)]+)\)", page)
    assert pictures
    assert set(pictures) == set(files)
    assert all(content[:2] in (b"\xff\xd8", b"\x89P") for content in files.values())
    assert ".ipynb" not in page
    assert "<style scoped>" not in page
    pages = {f"{other.stem}.md" for other in NOTEBOOKS}
    prose = re.sub(r"```.*?```|!\[[^]]*\]\([^)]*\)", "", page, flags=re.DOTALL)
    for link in re.findall(r"\[[^]]+\]\(([^)#]+)\)", prose):
        assert link.startswith("https://") or link in pages or (ROOT / "docs" / "notebooks" / link).resolve().exists()


def test_links_of_other_pages_lead_to_the_pages(hooks: Any) -> None:
    def converted(source: str, text: str) -> str:
        return str(hooks.on_page_markdown(text, page=SimpleNamespace(file=SimpleNamespace(src_uri=source))))

    assert converted("how-to/clip.md", "[a](../../notebooks/11_clip_text.ipynb)") == "[a](../notebooks/11_clip_text.md)"
    assert converted("index.md", "[a](../notebooks/01_a.ipynb)") == "[a](notebooks/01_a.md)"


def test_the_menu_has_all_notebooks() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"notebooks/(\w+)\.md", menu) == [path.stem for path in NOTEBOOKS]

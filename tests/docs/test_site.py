"""The site works from disk, without a network: its search, its pictures, its notes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documents import DOCS

WORKER = 'addEventListener("message", async ({ data }) => postMessage(2 * data));'
PAGE = """<script src="../iframe-worker.js"></script><script>
const worker = new Worker("../a worker.js"), answers = [];
worker.addEventListener("message", ({ data }) => {
  answers.push(data);
  if (answers.length === 3) document.title = answers;
});
for (const number of [1, 2, 3]) worker.postMessage(number);
</script>"""


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted(hooks: Any, text: str) -> str:
    return str(hooks.on_page_markdown(text, page=SimpleNamespace(file=SimpleNamespace(src_uri="how-to/app.md"))))


def test_a_worker_of_a_page_from_disk_answers_in_order(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    shutil.copy(DOCS / "iframe-worker.js", tmp_path)
    (tmp_path / "a worker.js").write_text(WORKER)
    (tmp_path / "pages" / "page.html").write_text(PAGE)
    page = browser.new_page()
    page.goto((tmp_path / "pages" / "page.html").as_uri())
    page.wait_for_function("document.title !== ''")
    assert page.title() == "2,4,6"
    page.close()


def test_the_search_loads_nothing_from_the_network() -> None:
    settings = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert "  - material/offline" in settings
    assert "polyfills: [iframe-worker.js]" in settings  # else the plugin names an address


def test_a_picture_is_large_at_a_click(hooks: Any) -> None:
    assert converted(hooks, "![The app](../app.jpg)") == "[![The app](../app.jpg)](../app.jpg)"
    assert converted(hooks, "a ![small](one.png) b") == "a ![small](one.png) b"


def test_notes_on_the_source_stay_in_the_source(hooks: Any) -> None:
    source = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert "mkdocs serve" in source
    assert "mkdocs serve" not in converted(hooks, source)
    assert "::: gradcam_kit.explain_all" in converted(hooks, source)

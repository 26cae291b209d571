"""The pages about errors show messages as they are printed, and what they tell to do works."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from documents import DOCS

from gradcam_kit import errors
from gradcam_kit.errors import GradCamKitError, missing_extra
from gradcam_kit.methods import METHODS

ERRORS = DOCS / "errors"
PAGES = sorted(path for path in ERRORS.glob("*.md") if path.stem != "index")
PACKAGE = Path(errors.__file__).parent


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code, in the order of the page."""
    return re.findall(r"^```(python|text)\n(.*?)\n```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def printed_on(page: Path) -> list[str]:
    return [text for language, text in blocks_of(page) if language == "text"]


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(METHODS)
    with torch.random.fork_rng():
        yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "extras"], ids=lambda page: page.stem)
def test_the_examples_print_the_messages_and_the_remedies_work(page: Path) -> None:
    names: dict[str, object] = {}
    blocks = [*blocks_of(page), ("end", "")]
    raised = 0
    for (language, text), (following, message) in pairwise(blocks):
        if language != "python":
            continue
        code = compile(text, str(page), "exec")
        if following != "text":
            exec(code, names)
            check_shapes(text, names)
            continue
        with pytest.raises(GradCamKitError) as caught:
            exec(code, names)
        assert f"{type(caught.value).__name__}: {caught.value}" == message
        raised += 1
    assert raised == len(printed_on(page)) > 0


def check_shapes(text: str, names: dict[str, object]) -> None:
    for name, shape in re.findall(r"^ *(\w+) = .*#.*?\((\d[\d, ]*)\)", text, re.MULTILINE):
        assert tuple(names[name].shape) == tuple(map(int, shape.split(", "))), name  # type: ignore[attr-defined]


def test_messages_about_missing_libraries_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    raised = {
        f"MissingExtraError: {missing_extra(*one)}"
        for one in re.findall(r'raise missing_extra\("([^"]+)", "(\w+)"\)', source)
    }
    shown = printed_on(ERRORS / "extras.md")
    assert shown
    assert set(shown) <= raised


def test_every_family_of_errors_has_a_page() -> None:
    heads = [page.read_text(encoding="utf-8").split("\n## ")[0] for page in PAGES]
    named = [name for head in heads for name in re.findall(r"`(\w+Error)`", head)]
    known = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, GradCamKitError)}
    assert sorted(named) == sorted(known - {"GradCamKitError"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_happened_why_and_what_to_do(page: Path) -> None:
    head, *sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "\n**What happened.** " in head
    for section in sections:
        parts = re.findall(r"^\*\*(.*?)\.\*\*", section, re.MULTILINE)
        assert parts == ["Why", "Remedy"], section.splitlines()[0]
        assert "```text\n" in section, section.splitlines()[0]
        assert "```python\n" in section.split("**Remedy.**")[1], f"{section.splitlines()[0]}: no line to run"


def test_the_index_leads_from_every_message_to_its_section() -> None:
    index = (ERRORS / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| \[.*?\]\((\w+\.md)#([\w-]+)\) \|$", index, re.MULTILINE)
    for page in PAGES:
        for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
            anchor = re.sub(r"[^\w -]", "", section.splitlines()[0]).lower().replace(" ", "-")
            begins = [text for text, *place in rows if place == [page.name, anchor]]
            for message in re.findall(r"```text\n(.*?)\n", section):
                assert any(message.startswith(one) for one in begins), f"{page.name}: {message}"
    assert len(rows) == sum(len(printed_on(page)) for page in PAGES)

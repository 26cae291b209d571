"""The page about a model: what it says, that it needs nothing from outside, and how it looks in a browser."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browsing import CONTRAST, WINDOWS, Page

from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.show.page import Channel, DataSection, Pair, place_of, render_page, verdict

HOSTILE = "<img src=x onerror=\"document.title='owned'\">{{ 7*7 }}"
LONG = "a_very_long_name_of_a_module_without_any_place_to_break" * 2


def report(layers: int = 40) -> Any:
    """What ModelDiagnostics reports, as far as the page reads it."""
    rows = [
        SimpleNamespace(
            name=LONG if i == 3 else f"blocks.{i}.conv",
            type="Conv2d",
            calls=1,
            n=640,
            elements=9,
            shape=(8, 4, 4),
            unit_axis=1,
            mean=0.1,
            std=2.0 ** -(i % 7),
            min=-1.0,
            max=math.inf,
            nan=int(i == 5),
            inf=0,
            zeros=10,
            dead=i if i % 2 else None,
            units=64,
            effective_rank=None,
            gradient_norm=math.nan,
            gradient_rms=10.0 ** -(i % 5) if i else math.nan,
        )
        for i in range(layers)
    ]
    parameters = [
        SimpleNamespace(name=f"blocks.{i}.weight", update_ratio=math.nan if i == 1 else 10.0**-i) for i in range(8)
    ]
    return SimpleNamespace(layers=rows, parameters=parameters, findings=())


def page(**options: Any) -> str:
    found = [
        Finding("note", "plateau", "", "It is flat", 0.001, 0.01, 30, "Wait", "convention"),
        Finding("bad", "leak", "layer1.0", f"{HOSTILE} and {LONG}", 2, 0, 70, f"Remove {HOSTILE}", "definition"),
        Finding("warn", "update", LONG, "A step is large", 0.3, 0.1, 20, "Lower the rate", "CS231n"),
    ]
    data = DataSection(
        {"the training set": [("cat", 30), (HOSTILE, 3)]},
        [Channel("the training set", i, 0.1, 1.0, -2.0, 2.0) for i in range(3)],
        [Pair(f"a/{LONG}.png", "b.png", b"", b"", "same pixels")],
    )
    given = {"model": "shop:net", "findings": found, "inputs": ["many pictures"], "skipped": [("leaks", "no test set")]}
    return render_page(**{**given, "data": data, "report": report(), "settings": {"steps": "20"}, **options})


def test_the_worst_finding_comes_first_and_all_is_said() -> None:
    text = page()
    order = [text.index(f'class="finding {level}"') for level in ("bad", "warn", "note")]
    assert order == sorted(order)
    assert "Something is wrong: leak." in text
    assert "value 0.3, threshold 0.1, n = 20 · source: CS231n" in text
    for words in (
        "Not examined",
        "no test set",
        "Many pictures.",
        "blocks.7.conv",
        "1e-3",
        "Labels of the training set",
    ):
        assert words in text


def test_nothing_is_taken_from_outside_or_for_markup() -> None:
    text = page()
    assert "<img src=x" not in text
    assert "{{ 7*7 }}" in text
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == []
    assert "<script" not in text
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)


def test_what_was_not_seen_has_no_section() -> None:
    text = render_page(model="net", findings=[])
    assert "Nothing wrong was found." in text
    for words in ("Not examined", "Layers", "Updates", "Data</h2>", "Settings", "Findings"):
        assert words not in text


def test_verdicts() -> None:
    assert verdict([]) == "Nothing wrong was found."
    assert verdict([Finding("warn", "leak", "", "x")]) == "Nothing is clearly wrong, but something deserves a look."


@pytest.mark.parametrize(("ratio", "place"), [(1e-3, 50), (1e-9, 0), (1.0, 100), (7.0, 100), (0.0, 0)])
def test_places_of_updates(ratio: float, place: float) -> None:
    assert place_of(ratio) == pytest.approx(place)


@pytest.mark.parametrize(("width", "height", "scheme"), WINDOWS)
def test_the_page_fits_a_screen_and_a_phone(browser: Any, width: int, height: int, scheme: Any, tmp_path: Path) -> None:
    tmp_path.joinpath("doctor.html").write_text(page(), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen = Page(context.new_page())
    seen.page.goto(tmp_path.joinpath("doctor.html").as_uri())
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert seen.page.title().startswith("shop:net")
    for selector in (".verdict", ".finding .level", ".numbers", ".about", ".profile .titles", ".explains", "dd"):
        for element in seen.page.locator(selector).all()[:4]:
            assert element.evaluate(CONTRAST) >= 4.5, selector
    first = seen.page.locator(".profile details").first
    first.locator("summary").press("Enter")
    assert first.locator("dl").is_visible()
    assert "effective rank" in first.inner_text()
    assert seen.problems == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []

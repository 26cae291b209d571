"""The page of a comparison as a file: what it says, what it colors, and how it looks in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import CONTRAST, HOSTILE, WINDOWS, Page

from gradcam_kit import compare
from gradcam_kit.comparison import write_comparisons
from gradcam_kit.comparison.document import render_document, summary_of
from gradcam_kit.pages import layers_in_short


@pytest.fixture(scope="module")
def found(model: Any, batch: Any) -> Any:
    return compare(model, batch.images, ["grad-cam", "eigen-cam"], metrics="sparseness", names=[HOSTILE, "b", "c"])


def test_means_over_several_comparisons_are_weighted_by_what_counts(model: Any, batch: Any, found: Any) -> None:
    others = [
        compare(model, batch.images[i:j], ["grad-cam", "eigen-cam"], metrics="sparseness") for i, j in ((0, 1), (1, 3))
    ]
    for whole, merged in zip(summary_of([found]), summary_of(others), strict=True):
        assert merged["method"] == whole["method"]
        assert merged["sparseness n"] == whole["sparseness n"]
        if merged["method"] != "random":
            assert merged["sparseness"] == pytest.approx(whole["sparseness"], rel=1e-4)
    assert summary_of([found]) == found.summary_rows() or np.isnan(found.summary_rows()[-1]["seconds"])


def test_the_page_names_the_model_and_escapes_what_it_shows(found: Any, tmp_path: Path) -> None:
    write_comparisons(tmp_path / "page.html", [replace(found, model_name=HOSTILE, left_out={HOSTILE: "why"})] * 2)
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert page.count("<section") == 6
    assert "6 images" in page
    assert "http" not in page.replace("http-equiv", "")


def test_many_layers_are_shown_by_their_ends(found: Any) -> None:
    many = [f"features.{index}" for index in range(19)]
    assert layers_in_short(many) == "features.0 + ... + features.18 (19 layers)"
    assert layers_in_short(many[:3]) == "features.0 + features.1 + features.2"
    label, one = next(iter(found.explanations.items()))
    long = replace(found, explanations={label: replace(one, layers=tuple(many))})
    assert "layer features.0 + ... + features.18 (19 layers) ·" in render_document([long])


def test_the_numbers_of_a_column_have_three_digits(found: Any) -> None:
    label = next(iter(found.costs))
    page = render_document([replace(found, costs={label: replace(found.costs[label], passes=1.0, peak_mb=159.0)})])
    assert '<td data-value="1.0">1.00</td>' in page
    assert '<td data-value="159.0">159</td>' in page


@pytest.mark.parametrize(("width", "height", "scheme"), WINDOWS)
def test_two_methods_can_be_subtracted_and_the_table_sorted(
    browser: Any, found: Any, width: int, height: int, scheme: Any, tmp_path: Path
) -> None:
    found.save(tmp_path / "page.html")
    seen = Page(browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme))
    seen.page.goto((tmp_path / "page.html").as_uri())
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.locator("h1").inner_text() == "How do 2 methods differ on DemoNet?"
    for place in (".about", ".better", ".n", "figcaption small", "footer p"):
        assert seen.page.locator(place).first.evaluate(CONTRAST) >= 4.5, place
    assert seen.page.locator(".measured td").first.inner_text().endswith(", n = 3")
    seen.page.locator(".measured th", has_text="Sparseness").locator("button").click()
    shown = [
        float(text)
        for text in seen.page.evaluate(
            "[...document.querySelectorAll('td:nth-child(2)')].map((one) => one.dataset.value)"
        )
    ]
    assert shown == sorted(shown, reverse=True)
    painted = seen.page.locator("figure:not(.difference) canvas:not([hidden])").first
    painted.wait_for()
    assert painted.evaluate("one => one.width") == 128
    seen.page.keyboard.press("d")
    said = seen.page.locator(".difference figcaption").first
    said.locator("small").first.wait_for()
    a, b = (torch.round(found.heatmaps[name][0] * 255) for name in ("grad-cam", "eigen-cam"))
    apart, most = float((a - b).abs().mean() / 255), float((a - b).abs().max() / 255)
    correlation = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
    assert said.inner_text().split("\n") == [
        "grad-cam minus eigen-cam",
        f"mean absolute difference {apart:.3f}, largest {most:.2f}",
        f"correlation {correlation:.3f}",
    ]
    seen.page.locator("#first").select_option("")
    seen.page.locator(".difference").first.wait_for(state="hidden")
    assert seen.problems == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []

"""What the report looks like: heatmaps where the model saw them, colors, widths, names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import disk
import numpy as np
import pytest
from browsing import CONTRAST, IS_BLANK, WINDOWS, Page
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_the_heatmap_is_painted_where_the_model_saw(seen: Page, made: Path) -> None:
    row = next(row for row in disk.read_rows(made) if row["path"] == "cat/00.png")
    card = seen.page.locator(".card", has_text="cat/00.png")
    frame, place = card.locator(".frame").bounding_box(), card.locator(".seen").bounding_box()
    assert frame == place  # of the picture only what the model saw
    shown, scale = card.locator("img").bounding_box(), frame["width"] / (row["box"][2] - row["box"][0])
    assert shown["width"] == pytest.approx(row["picture_width"] * scale, abs=1)
    assert shown["x"] == pytest.approx(frame["x"] - row["box"][0] * scale, abs=1)
    seen.page.locator("#whole").check()
    frame, place = card.locator(".frame").bounding_box(), card.locator(".seen").bounding_box()
    assert frame
    assert place
    scale = frame["width"] / row["picture_width"]
    x0, y0, x1, _ = row["box"]
    assert place["x"] - frame["x"] == pytest.approx(x0 * scale, abs=1)
    assert place["y"] - frame["y"] == pytest.approx(y0 * scale, abs=1)
    assert place["width"] == pytest.approx((x1 - x0) * scale, abs=1)
    side = 96
    assert seen.painted(".card[title='cat/00.png'] canvas")
    pixels = card.locator("canvas").evaluate(
        "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
    )
    image = np.array(pixels).reshape(side, side, 4).astype(int)
    warmth = image[..., 0] - image[..., 2]
    hottest = np.unravel_index(row["heatmap"].argmax(), row["heatmap"].shape)
    center = [int((index + 0.5) / size * side) for index, size in zip(hottest, row["heatmap"].shape, strict=True)]
    assert warmth[center[0], center[1]] > np.median(warmth) + 60


def test_colors_can_be_changed(seen: Page) -> None:
    before = seen.painted()
    seen.page.locator("#colors").select_option("viridis")
    assert seen.painted() != before
    seen.page.locator("#colors").select_option("jet")
    assert seen.painted() == before


def test_heatmaps_are_painted_when_they_come_near_the_screen(seen: Page) -> None:
    assert seen.painted("#gallery .card:first-child canvas")
    last = seen.page.locator("#gallery canvas").last
    assert last.evaluate(IS_BLANK)
    last.scroll_into_view_if_needed()
    assert seen.painted("#gallery .card:last-child canvas")


def test_every_input_has_a_name(seen: Page) -> None:
    seen.page.locator("#gallery .card").first.click()
    nameless = seen.page.evaluate(
        """[...document.querySelectorAll("input, select, button")].filter((one) => {
          const text = one.matches("button") ? one.innerText : one.labels[0]?.innerText;
          return one.offsetParent && !(one.getAttribute("aria-label") || text || "").trim();
        }).map((one) => one.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize(("width", "height", "scheme"), WINDOWS)
def test_it_fits_and_can_be_read(browser: Browser, made: Path, width: int, height: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(made.joinpath("report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (np.mean(ink) < np.mean(paper)) == (scheme == "light")
    assert page.locator("#filters > div").is_visible() == (width > 640)  # folded on a phone
    if width > 640:
        tops = page.locator("#controls fieldset").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
        assert len(tops) == 3
        assert len(set(tops)) == 1, "look, filter and sort in one row"
    if width < 640:
        page.locator("#filters > summary").click()
    page.locator("#status").select_option("wrong")
    for place in (
        "h1 em",
        ".about",
        ".figures dt",
        "#controls label",
        "#found",
        "#gallery .path",
        "#gallery .wrong",
        "footer p",
    ):
        assert page.locator(place).first.evaluate(CONTRAST) >= 4.5, place
    assert (
        page.locator("#gallery").evaluate("grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length") >= 2
    )
    context.close()


def test_the_picture_in_readme_shows_a_report(browser: Browser, made: Path, tmp_path: Path) -> None:
    from notebooks.screenshot import photograph

    photograph(browser, made / "report.html", tmp_path / "report.jpg")
    with (
        Image.open(tmp_path / "report.jpg") as photo,
        Image.open(Path(__file__).parents[2] / "docs/report.jpg") as known,
    ):
        assert (photo.format, photo.size) == ("JPEG", known.size)


def test_what_is_printed_is_light_whole_and_without_controls(seen: Page) -> None:
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert not seen.page.locator("#filters").is_visible()
    assert not seen.page.locator("nav").is_visible()
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not seen.page.locator("#gallery canvas").last.evaluate(IS_BLANK)
    seen.page.locator("#gallery .card").first.dispatch_event("click")
    assert seen.page.locator("#stage .frame").is_visible()
    assert not seen.page.locator("h1").is_visible()

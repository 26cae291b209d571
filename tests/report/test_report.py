"""The page about a run, as a person sees it in a browser."""

from __future__ import annotations

from pathlib import Path

import disk
import numpy as np
import pytest
from browsing import HOSTILE, Page


def test_figures_gallery_and_pages(seen: Page, made: Path) -> None:
    assert seen.page.locator(".figures div", has_text="pictures").locator("dd").first.inner_text() == "73"
    assert seen.page.locator(".figures div", has_text="failed").locator("dd").inner_text() == "1"
    assert (seen.shown(), seen.cards()) == (73, 60)
    seen.page.locator("#next").click()
    assert seen.cards() == 13
    seen.page.keyboard.press("ArrowLeft")
    assert seen.cards() == 60
    assert seen.page.locator("#gallery .frame img").first.evaluate("image => image.naturalWidth") > 50
    rows = {row["path"]: row for row in disk.read_rows(made)}
    right = sum(row["correct"] is True for row in rows.values())
    seen.page.locator("#status").select_option("right")
    assert seen.shown() == right
    seen.page.locator("#status").select_option("wrong")
    assert seen.shown() == sum(row["correct"] is False for row in rows.values()) > 0
    seen.page.locator("#status").select_option("failed")
    assert seen.shown() == 1
    assert "cannot read the picture" in seen.page.locator("#gallery").inner_text()


def test_search_class_and_confidence_filter(seen: Page, made: Path) -> None:
    rows = {row["path"]: row for row in disk.read_rows(made) if row["status"] == "ok"}
    seen.page.keyboard.press("/")
    seen.page.keyboard.type("CAT/0")
    assert seen.shown() == sum("cat/0" in path for path in rows)
    seen.page.locator("#search").fill("")
    name = rows["cat/00.png"]["predicted_name"]
    seen.page.locator("#predicted").select_option(name)
    assert seen.shown() == sum(name == row["predicted_name"] for row in rows.values())
    seen.page.locator("#label").select_option("cup")
    assert seen.shown() == sum((name, "cup") == (row["predicted_name"], row["label"]) for row in rows.values()) > 0
    seen.page.locator("#clear").click()
    assert seen.shown() == 73
    assert not seen.page.locator("#clear").is_visible()
    scores = [row["top_scores"][0] for row in rows.values()]
    least = round(100 * float(np.median(scores)))
    seen.page.locator("#least").fill(str(least))
    assert seen.shown() == sum(round(score, 4) >= least / 100 for score in scores)
    assert seen.page.locator("#least-value").inner_text() == f"{least}%"
    seen.page.locator("#most").fill(str(least + 2))
    assert seen.shown() == sum(least / 100 <= round(score, 4) <= (least + 2) / 100 for score in scores) < len(scores)
    seen.page.locator("#clear").click()
    seen.page.locator("#sort").select_option("high")
    first = seen.page.locator("#gallery .card .path").first.inner_text()
    assert rows[first]["top_scores"][0] == pytest.approx(max(scores), abs=1e-4)


def test_heatmap_opacity_and_methods_side_by_side(seen: Page) -> None:
    opacity = "canvas => getComputedStyle(canvas).opacity"
    canvas = seen.page.locator("#gallery canvas").first
    assert canvas.evaluate(opacity) == "0.5"
    seen.page.locator("#opacity").fill("80")
    assert canvas.evaluate(opacity) == "0.8"
    seen.page.locator("#opacity").blur()
    seen.page.keyboard.press("h")
    assert canvas.evaluate(opacity) == "0"
    count = seen.page.locator("#gallery canvas").count()
    seen.page.locator("#method").select_option(label="side by side")
    assert seen.page.locator("#gallery canvas").count() == 2 * count


def test_details_open_and_are_walked_through_by_keyboard(seen: Page) -> None:
    seen.page.locator("#gallery .card").nth(2).focus()
    seen.page.keyboard.press("Enter")
    dialog = seen.page.locator("dialog")
    first = dialog.locator("h2").inner_text()
    assert dialog.locator("canvas").count() == 1
    assert dialog.locator("tr").count() == 3
    assert dialog.locator("[role=tab]").all_inner_texts() == ["picture", "grad-cam", "layer-cam"]
    assert dialog.get_attribute("aria-labelledby") == "detail-path"
    assert seen.page.evaluate("document.activeElement.id") == "detail-path"
    seen.page.keyboard.press("ArrowRight")
    second = dialog.locator("h2").inner_text()
    assert second != first
    seen.page.locator("#before").click()
    assert dialog.locator("h2").inner_text() == first
    seen.page.locator("#after").click()
    assert dialog.locator("h2").inner_text() == second
    seen.page.locator("#detail-opacity").fill("30")
    assert dialog.locator("canvas").first.evaluate("canvas => getComputedStyle(canvas).opacity") == "0.3"
    assert seen.page.locator("#opacity").input_value() == "30"
    seen.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert seen.page.evaluate("document.activeElement.title") == first  # where it was before
    for key in ("ArrowRight", "/"):
        seen.page.keyboard.press(key)
    assert seen.page.evaluate("document.activeElement.id") == "search"
    seen.page.keyboard.press("h")
    assert seen.page.locator("#search").input_value() == "h"
    seen.page.keyboard.press("Escape")
    seen.page.keyboard.press("Escape")
    seen.page.keyboard.press("h")
    assert seen.page.locator("#opacity").input_value() == "0"
    seen.page.keyboard.press("h")
    assert seen.page.locator("#opacity").input_value() == "30"


def test_details_of_a_confusion_stay_with_its_pictures(seen: Page) -> None:
    seen.page.locator("button[data-view=pairs]").click()
    tiles = seen.page.locator("#pairs .row").first.locator(".card")
    names = [tile.get_attribute("title") for tile in tiles.all()]
    tiles.first.click()
    found = []
    for _ in range(len(names) + 2):
        found.append(seen.page.locator("#detail-path").inner_text())
        seen.page.keyboard.press("ArrowRight")
    assert found[: len(names)] == names
    assert set(found[len(names) :]) == {names[-1]}
    assert seen.page.locator("#after").is_disabled()
    seen.page.locator("#close").click()
    assert not seen.page.locator("dialog").is_visible()


def test_failures_empty_maps_and_nothing_at_all(seen: Page, made: Path) -> None:
    empty = {row["path"] for row in disk.read_rows(made) if row["is_empty"]}
    seen.page.locator("button[data-show=failed]").click()
    assert (seen.shown(), seen.page.locator("#status").input_value()) == (1, "failed")
    seen.page.locator("button[data-show=empty]").click()
    assert seen.shown() == len(empty) > 0
    assert "no positive evidence" in seen.page.locator("#gallery .card").first.inner_text()
    seen.page.locator("#search").fill("there is no such name")
    assert seen.page.locator("#found").inner_text() == "None of 73 pictures matches."
    assert not seen.page.locator("#pager").is_visible()
    seen.page.locator("#clear").click()
    assert seen.shown() == 73
    seen.page.locator("#page").fill("2")
    seen.page.locator("#page").press("Enter")
    assert seen.cards() == 13
    seen.page.locator("#page").fill("99")
    seen.page.locator("#page").press("Enter")
    assert seen.page.locator("#page").input_value() == "2"


def test_confusions_and_classes(seen: Page, made: Path) -> None:
    rows = {row["path"]: row for row in disk.read_rows(made) if row["correct"] is False}
    pairs = {(row["label"], row["predicted_name"]) for row in rows.values()}
    seen.page.locator("button[data-view=pairs]").click()
    assert not seen.page.locator("#gallery").is_visible()
    assert seen.page.locator("#pairs .row").count() == len(pairs)
    title = seen.page.locator("#pairs h2").first.inner_text()
    label, _, name = title.partition(" → ")
    assert (label, name) in pairs
    predicted = {row["predicted_name"] for row in disk.read_rows(made)}
    means = seen.page.locator("#pairs .row").first.locator(".mean").all_inner_texts()
    every = {"mean of these": True, f"all predicted as {label}": label in predicted, f"all predicted as {name}": True}
    assert means == [text for text, is_there in every.items() if is_there]
    seen.page.locator("#pairs button", has_text="show them").first.click()
    assert seen.shown() == sum((row["label"], row["predicted_name"]) == (label, name) for row in rows.values())
    assert {seen.page.locator(f"#{one}").input_value() for one in ("status", "label", "predicted")} == {
        "wrong",
        label,
        name,
    }
    seen.page.locator("#clear").click()
    assert seen.shown() == 73
    seen.page.locator("button[data-view=classes]").click()
    assert seen.page.locator("#classes .row").count() == len(
        {row["predicted_name"] for row in disk.read_rows(made) if row["status"] == "ok"} | {"cat", "cup", "person"}
    )


def test_names_are_text_and_nothing_else(seen: Page) -> None:
    seen.page.locator("#search").fill("7*7")
    assert seen.shown() == 1
    assert HOSTILE in seen.page.locator("#gallery").inner_text()
    assert "{{7*7}}" in seen.page.locator("#gallery").inner_text()
    assert seen.page.locator("#label").inner_html().count("<option") == 5  # anything, cat, cup, person, the hostile one
    seen.page.locator("#gallery .card").click()
    assert HOSTILE in seen.page.locator("dialog h2").inner_text()
    assert seen.page.title().startswith("shop:net")
    assert seen.page.locator("img[src=x]").count() == 0

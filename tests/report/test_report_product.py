"""The parts of the page about a run that help to answer a question: stage, chips, links, tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import disk
import pytest
from browsing import Page
from PIL import Image

from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest
from gradcam_kit.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def address(seen: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(seen.page.url).fragment)


def test_one_large_stage_with_tabs_and_a_wipe_between_two(seen: Page) -> None:
    seen.page.locator("#gallery .card").first.click()
    dialog, window = seen.page.locator("dialog"), seen.page.viewport_size
    column = seen.page.locator("#stage").bounding_box()
    assert 0.55 < column["width"] / window["width"] < 0.7
    chosen = dialog.locator("[role=tab][aria-selected=true]")
    assert chosen.inner_text() == "grad-cam"
    first = seen.painted("#stage canvas")
    seen.page.keyboard.press("2")
    assert chosen.inner_text() == "layer-cam"
    assert seen.painted("#stage canvas") != first
    seen.page.keyboard.press("0")
    assert dialog.locator("#stage canvas").count() == 0
    seen.page.keyboard.press("1")
    seen.page.keyboard.press("w")
    assert seen.page.locator("#against").input_value() == "1"
    assert dialog.locator("#stage canvas").count() == 2
    place = seen.page.locator(".wipe").bounding_box()
    seen.page.mouse.move(place["x"] + place["width"] / 4, place["y"] + 20)
    seen.page.mouse.down()
    seen.page.mouse.up()
    assert float(seen.page.locator("#wipe").input_value()) == pytest.approx(25, abs=1)
    inset = seen.page.locator(".over").evaluate("over => getComputedStyle(over).clipPath")
    assert float(inset.rpartition(" ")[2].rstrip("%)")) == pytest.approx(25, abs=1)
    seen.page.keyboard.press("2")  # the other of the two: they change places
    assert seen.page.locator("#against").input_value() == "0"
    seen.page.keyboard.press("w")
    assert dialog.locator("#stage canvas").count() == 1
    assert dialog.locator("#facts tr").count() == 3
    before = seen.page.locator("#stage .frame").bounding_box()
    seen.page.keyboard.press("f")
    after = seen.page.locator("#stage .frame").bounding_box()
    assert before["width"] / before["height"] != pytest.approx(after["width"] / after["height"], rel=0.01)


def test_chips_name_the_filters_that_are_on_and_remove_them(seen: Page) -> None:
    seen.page.locator("#status").select_option("wrong")
    seen.page.locator("#search").fill("cat/0")
    wrong = seen.shown()
    chips = seen.page.locator("#chips button")
    assert [text.rstrip(" ×") for text in chips.all_inner_texts()] == ["search: cat/0", "wrong"]
    chips.first.click()
    assert seen.shown() > wrong
    assert seen.page.locator("#search").input_value() == ""
    chips.first.click()
    assert seen.shown() == 73
    assert chips.count() == 0


def test_a_link_opens_what_was_seen(seen: Page) -> None:
    seen.page.locator("#status").select_option("wrong")
    seen.page.locator("#sort").select_option("high")
    seen.page.locator("#method").select_option("layer-cam")
    shown = seen.shown()
    seen.page.locator("#gallery .card").nth(1).click()
    path = seen.page.locator("#detail-path").inner_text()
    wanted = {"status": ["wrong"], "sort": ["high"], "method": ["layer-cam"], "picture": [path]}
    assert address(seen) == wanted
    seen.page.reload()
    assert seen.page.locator("#detail-path").inner_text() == path
    assert seen.shown() == shown
    assert seen.page.locator("#method").input_value() == "layer-cam"
    seen.page.keyboard.press("Escape")
    seen.page.wait_for_function("!location.hash.includes('picture')")
    seen.page.evaluate("location.hash = 'status=nonsense&view=classes&predicted=nobody'")
    seen.page.locator("#classes .histogram").wait_for()
    assert seen.page.locator("#status").input_value() == "all"
    seen.page.evaluate("location.hash = ''")
    seen.page.locator("#gallery .card").first.wait_for()
    assert address(seen) == {}


def test_tables_and_pictures_can_be_kept(seen: Page, made: Path) -> None:
    seen.page.locator("#status").select_option("wrong")
    with seen.page.expect_download() as kept:
        seen.page.locator("#csv").click()
    table = list(csv.DictReader(io.StringIO(Path(kept.value.path()).read_text("utf-8-sig"))))
    rows = [row for row in disk.read_rows(made) if row["correct"] is False]
    assert [(one["path"], one["method"]) for one in table] == [(row["path"], row["method"]) for row in rows]
    assert float(table[0]["target_score"]) == pytest.approx(rows[0]["score"], abs=1e-4)
    dangers = seen.page.evaluate("""['=1+1', "@x", 'a"b', "a,b", -1, null].map(cell)""")
    assert dangers == ["'=1+1", "'@x", '"a""b"', '"a,b"', "-1", ""]
    seen.page.locator("#gallery .card").first.click()
    seen.painted("#stage canvas")
    with seen.page.expect_download() as kept:
        seen.page.locator("#png").click()
    with Image.open(kept.value.path()) as picture:
        x0, y0, x1, y1 = rows[0]["box"]
        assert picture.size[0] >= 512
        assert picture.size[0] / picture.size[1] == pytest.approx((x1 - x0) / (y1 - y0), rel=0.01)


def test_the_histogram_counts_all_and_shows_a_bar(seen: Page, made: Path) -> None:
    seen.page.locator("button[data-view=classes]").click()
    scores = [
        row["top_scores"][0] for row in {row["path"]: row for row in disk.read_rows(made)}.values() if row["top_scores"]
    ]
    bars = seen.page.locator(".column:enabled")
    words = bars.first.get_attribute("title")
    low, high = (float(number) / 100 for number in words.partition("%")[0].split(" to "))
    inside = [score for score in scores if low <= score < high]
    assert sum(int(part.split()[0]) for part in words.partition(": ")[2].split(", ")) == len(inside) > 0
    bars.first.click()
    assert seen.shown() == len([score for score in scores if low <= round(score, 4) <= high])


def test_metrics_have_units_and_counts_and_can_be_sorted_and_random_weights_are_told(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_pictures(Path("pictures"))
    methods = ("layer-cam", "grad-cam", "eigen-cam")
    request = RunRequest(
        "shop:net", source="pictures", out="out", methods=methods, metrics=("sparseness",), workers=1, overlays=0
    )
    run_and_report(request)
    manifest = Path("out/run.json")
    manifest.write_text(manifest.read_text().replace('"weights": "its factory"', '"weights": "random"'))
    write_report("out")
    seen = Page(browser.new_page())
    seen.page.goto(Path("out/report.html").absolute().as_uri())
    head = seen.page.locator(".measured th", has_text="Sparseness")
    assert head.locator(".better").inner_text() == "0 to 1, higher is better"
    cells = seen.page.locator(".measured tbody td")
    assert cells.first.inner_text().endswith(", n = 7")
    head.locator("button").click()
    found = [float(cell.get_attribute("data-value")) for cell in cells.all()]
    assert found == sorted(found, reverse=True)
    assert seen.page.locator(".banner").inner_text() == "The weights are random, so the heatmaps are meaningless."
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert [float(cell.get_attribute("data-value")) for cell in cells.all()] == sorted(found)
    footer = seen.page.locator("footer").inner_text()
    assert "gradcam-kit run pictures --model shop:net --out DIR --scores softmax --method layer-cam" in footer
    assert "gradcam-kit 0" in footer
    assert seen.problems == []
    seen.page.close()

"""The page about a run, as a person sees it in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import disk
import numpy as np
import pytest
from browsing import CONTRAST, IS_BLANK, Page
from PIL import Image

from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.report import write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with right, wrong, hostile and broken pictures."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        disk.move_in(folder, patch)
        for i in range(70):
            label = ("cat", "cup", "person")[i % 3]
            disk.write_picture(Path(f"pictures/{label}/{i:02}.png"), np.roll((disk.CAT, disk.COFFEE)[i % 2], i, axis=1))
        disk.write_picture(Path(f"pictures/{HOSTILE}/'\"&<b>{{{{7*7}}}}.png"), disk.CAT)
        Path("pictures/broken.jpg").write_text("</script><script>alert(1)</script>")
        disk.write_picture(Path("pictures/cat/black.png"), disk.BLACK)
        request = RunRequest(
            "shop:net", source="pictures", out="out", methods=("grad-cam", "layer-cam"), overlays=0, workers=1
        )
        assert run_and_report(request).report == "out/report.html"
        store = Store.at("out")
        rows, nothing = store.read_shard(0), {"is_empty": True, "heatmap": bytes(2 * 7 * 9)}
        blank = [row | nothing if row["path"] == "cat/black.png" else row for row in rows]
        store.write_shard(0, blank, store.read_thumbnails(0))
        write_report("out")
    return folder / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def seen(browser: playwright.Browser, made: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    found = Page(context.new_page())
    found.page.goto(made.joinpath("report.html").as_uri())
    yield found
    assert found.problems == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:"))] == []
    context.close()


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


def test_the_heatmap_is_painted_where_the_model_saw(seen: Page, made: Path) -> None:
    row = next(row for row in disk.read_rows(made) if row["path"] == "cat/00.png")
    card = seen.page.locator(".card", has_text="cat/00.png")
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


def test_details_open_and_are_walked_through_by_keyboard(seen: Page) -> None:
    seen.page.locator("#gallery .card").nth(2).focus()
    seen.page.keyboard.press("Enter")
    dialog = seen.page.locator("dialog")
    first = dialog.locator("h2").inner_text()
    assert dialog.locator("canvas").count() == 2
    assert dialog.locator("tr").count() == 3
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
    every = {"mean of these": True, f"all taken for {label}": label in predicted, f"all taken for {name}": True}
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_and_can_be_read(browser: playwright.Browser, made: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(made.joinpath("report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (np.mean(ink) < np.mean(paper)) == (scheme == "light")
    assert page.locator("#filters > div").is_visible() == (width > 640)  # folded on a phone
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


def test_the_picture_in_readme_shows_a_report(browser: playwright.Browser, made: Path, tmp_path: Path) -> None:
    from notebooks.screenshot import photograph

    photograph(browser, made / "report.html", tmp_path / "report.jpg")
    with (
        Image.open(tmp_path / "report.jpg") as photo,
        Image.open(Path(__file__).parents[2] / "docs/report.jpg") as known,
    ):
        assert (photo.format, photo.size) == ("JPEG", known.size)

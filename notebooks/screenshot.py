"""Photograph the pages that the project makes, for README and docs/: `python -m notebooks.screenshot [NAME...]`.

Needs Chromium, the weights of `mobilenet-v2`, scikit-learn for two photographs, Gradio for the app, and for the site
`mkdocs build`. What is missing is named and left out.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from gradcam_kit import explain_folder
from gradcam_kit.jobs.compare import SheetRequest, render_sheet

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WIDTH, HEIGHT, _QUALITY = 1400, 900, 82
_LARGEST = 150_000  # bytes
PHONE = (390, 844)

_PAINTED = """() => [...document.querySelectorAll("#gallery img, #gallery canvas")].every((one) => {
  if (one.getBoundingClientRect().top > innerHeight) return true;
  if (one.tagName === "IMG") return one.complete;
  return one.getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0;  // what is painted is opaque
}) && document.querySelector("#gallery canvas") !== null"""
_CUTS = ((0, 0, 1, 1), (0, 0, 0.7, 0.8), (0.3, 0, 1, 0.8), (0, 0.2, 0.7, 1), (0.3, 0.2, 1, 1), (0.15, 0.1, 0.85, 0.9))


def photographs() -> dict[str, Path]:
    """Return photographs that scikit-image and scikit-learn bring, by the class of ImageNet that they show."""
    import skimage.data

    ours = Path(skimage.data.__file__).parent
    names = {
        "Egyptian cat": "chelsea.png", "espresso": "coffee.png", "missile": "rocket.jpg",
        "moped": "motorcycle_left.png", "tripod": "camera.png",
    }  # fmt: skip
    found = {name: ours / file for name, file in names.items()}
    if find_spec("sklearn"):
        import sklearn.datasets

        found["palace"] = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    return found


def write_pictures(folder: Path) -> None:
    """Write six cuts of each photograph, a folder for each class, and a file that is not a picture."""
    for name, path in photographs().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture = Image.open(path).convert("RGB")
        w, h = picture.size
        for number, (x0, y0, x1, y1) in enumerate(_CUTS):
            cut = picture.crop((round(x0 * w), round(y0 * h), round(x1 * w), round(y1 * h)))
            cut.save(folder / name / f"{path.stem}-{number}.jpg", quality=92)
    (folder / "espresso" / "broken.jpg").write_text("no picture")


def photograph(browser: Browser, report: Path, out: Path) -> None:
    """Write what the upper part of a report shows, the confident mistakes first, as a JPEG."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    page.goto(report.absolute().as_uri())
    page.locator("#sort").select_option("wrong")
    page.wait_for_function(_PAINTED)
    save(page, out)
    page.close()


def save(page: Page, out: Path) -> None:
    """Write what a page shows as a JPEG of at most 150 kB."""
    picture = Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB")
    write_small(picture, out)


def write_small(picture: Image.Image, out: Path) -> None:
    """Write a JPEG, in the best quality in which it has at most 150 kB."""
    for quality in range(_QUALITY, 30, -6):
        picture.save(out, quality=quality, optimize=True)
        if out.stat().st_size <= _LARGEST:
            return


@dataclass
class Studio:
    """Pages, made when they are first asked for, and a browser that shows them.

    Attributes:
        browser: Chromium.
        folder: where the pages are made.
        stack: ends the app.
    """

    browser: Browser
    folder: Path
    stack: ExitStack

    @cached_property
    def report(self) -> str:
        write_pictures(Path("photographs"))
        explain_folder("photographs", "mobilenet-v2", "run", methods=["grad-cam", "layer-cam"], quiet=True)
        return Path("run/report.html").absolute().as_uri()

    @cached_property
    def comparison(self) -> str:
        write_pictures(Path("pictures"))
        shown = ("Egyptian cat/chelsea-0.jpg", "espresso/coffee-0.jpg", "missile/rocket-2.jpg")
        asked = SheetRequest(
            "mobilenet-v2",
            sources=tuple(f"pictures/{name}" for name in shown),
            out=Path("comparison.html"),
            methods=("grad-cam", "layer-cam", "finer-cam", "full-grad", "eigen-cam"),
            metrics=("average-drop", "average-increase"),
        )
        render_sheet(asked)
        return Path("comparison.html").absolute().as_uri()

    @cached_property
    def demo(self) -> str:
        from gradcam_kit.jobs.demos.page import make_demo_page

        return make_demo_page(Path("demo")).page.absolute().as_uri()

    @cached_property
    def app(self) -> str:
        if find_spec("gradio") is None:
            raise MissingError('the app needs Gradio: pip install -e ".[app]"')
        from gradcam_kit.app import AppModel, build_page
        from gradcam_kit.app.serving import free_port, running
        from gradcam_kit.jobs import ModelRequest

        page = build_page(AppModel.load(ModelRequest("mobilenet-v2", device="cpu")))
        return self.stack.enter_context(running(page, free_port(7900)))[0]

    @cached_property
    def site(self) -> str:
        start = ROOT / "build" / "site" / "index.html"
        if not start.exists():
            raise MissingError("the site is not built: NO_MKDOCS_2_WARNING=1 mkdocs build")
        return start.as_uri()

    def open(self, address: str, size: tuple[int, int] = (1400, 900), scheme: Any = "light") -> Page:
        """Return a page with an address, of a size in pixels, in light or dark colors."""
        page = self.browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page.set_default_timeout(120_000)
        page.goto(address)
        return page


def shoot_report(studio: Studio) -> None:
    photograph(studio.browser, Path("run/report.html") if studio.report else Path(), DOCS / "report.jpg")


def _detail(studio: Studio, size: tuple[int, int], scheme: str) -> Page:
    page = studio.open(f"{studio.report}#sort=wrong", size, scheme)
    page.locator("#gallery .card").first.click()
    page.wait_for_timeout(500)
    return page


def shoot_detail(studio: Studio) -> None:
    page = _detail(studio, (1400, 900), "dark")
    page.keyboard.press("w")
    page.wait_for_timeout(500)
    save(page, DOCS / "report-dark.jpg")


def shoot_compare(studio: Studio) -> None:
    page = studio.open(studio.comparison)
    page.locator("#first").select_option("0")
    page.wait_for_timeout(1000)
    save(page, DOCS / "compare.jpg")


def shoot_demo(studio: Studio) -> None:
    save(studio.open(studio.demo), DOCS / "demo.jpg")


def _app(studio: Studio, size: tuple[int, int]) -> Page:
    page = studio.open(studio.app, size)
    page.get_by_role("button", name="cat", exact=True).click()
    page.locator(".card img").nth(2).wait_for(state="attached")
    page.wait_for_timeout(2500)
    return page


def shoot_app(studio: Studio) -> None:
    save(_app(studio, (1400, 1000)), DOCS / "app.jpg")


def shoot_site(studio: Studio) -> None:
    address = studio.site.replace("index.html", "how-to/detection.html")
    halves = [_picture(studio.open(address, (700, 900), scheme)) for scheme in ("light", "dark")]
    write_small(beside(halves), DOCS / "site.jpg")


def shoot_phones(studio: Studio) -> None:
    """Photograph a phone's view of each page that is there, all side by side."""
    pages = [studio.open(studio.demo, PHONE), studio.open(studio.report, PHONE), _detail(studio, PHONE, "dark")]
    if find_spec("gradio"):
        pages.append(_app(studio, PHONE))
    pages[1].wait_for_function(_PAINTED.replace("one.getBoundingClientRect().top > innerHeight", "true"))
    write_small(beside([_picture(page) for page in pages], 0.75), DOCS / "phones.jpg")


def _picture(page: Page) -> Image.Image:
    page.wait_for_timeout(300)
    return Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB")


def beside(pictures: Sequence[Image.Image], factor: float = 1.0, gap: int = 16) -> Image.Image:
    """Return pictures of one size side by side, a gap between them."""
    width, height = (round(factor * side) for side in pictures[0].size)
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "#888")
    for place, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (place * (width + gap), 0))
    return sheet


class MissingError(Exception):
    """What a picture needs is not there; the message says how to get it."""


@contextmanager
def missing_told(name: str) -> Iterator[None]:
    """Say what is missing for a picture, and go on."""
    try:
        yield
    except MissingError as error:
        print(f"{name}: left out, {error}")


SHOTS: Mapping[str, Callable[[Studio], None]] = {
    "report": shoot_report,
    "detail": shoot_detail,
    "compare": shoot_compare,
    "demo": shoot_demo,
    "app": shoot_app,
    "site": shoot_site,
    "phones": shoot_phones,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pages and photograph them."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.screenshot", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHOTS)}; default: all")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="default: the one on the PATH")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in SHOTS]:
        parser.error(f"no picture {unknown[0]!r}; expected of {', '.join(SHOTS)}")
    if options.chromium is None:
        parser.error("no chromium on the PATH; name one with --chromium")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.chdir(folder)  # the report says what its source was called
        stack.callback(os.chdir, before)
        driver = stack.enter_context(sync_playwright())
        browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        studio = Studio(browser, Path(folder), stack)
        for name in options.names or SHOTS:
            with missing_told(name):
                SHOTS[name](studio)


if __name__ == "__main__":
    main()

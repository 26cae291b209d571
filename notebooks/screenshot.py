"""Photograph the report of a run for README: `python -m notebooks.screenshot`, into docs/report.jpg; needs Chromium."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from gradcam_kit import explain_folder
from gradcam_kit.demo import CLASS_NAMES, HELD_OUT, draw

_PAINTED = """() => [...document.querySelectorAll("#gallery img, #gallery canvas")].every((one) => {
  if (one.getBoundingClientRect().top > innerHeight) return true;
  if (one.tagName === "IMG") return one.complete;
  return one.getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0;  // what is painted is opaque
}) && document.querySelector("#gallery canvas") !== null"""
_WIDTH, _HEIGHT, _QUALITY = 1180, 760, 88


def write_pictures(folder: Path) -> None:
    """Pictures of the demo's classes, a folder for each; some are cut, dark or in the wrong folder, and one is none."""
    for seed in range(60):
        sample = draw(HELD_OUT + seed)
        label = sample.label if seed % 9 else (sample.label + 1) % len(CLASS_NAMES)
        path = folder / CLASS_NAMES[label] / f"{seed:02}-{sample.size}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(sample.picture)
        if seed % 4 == 1:
            picture = picture.crop((0, 16, 128, 112))
        if seed % 5 == 2:
            picture = picture.point([level // 2 for level in range(256)] * 3)
        picture.save(path)
    (folder / "heart" / "broken.png").write_text("no picture")


def photograph(browser: Browser, report: Path, out: Path) -> None:
    """Write what the upper part of a report shows, the confident mistakes first, as a JPEG."""
    page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
    page.goto(report.absolute().as_uri())
    page.locator("#sort").select_option("wrong")
    page.wait_for_function(_PAINTED)
    page.screenshot(path=out, type="jpeg", quality=_QUALITY)
    page.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Explain pictures of the demo, and photograph the report."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.screenshot", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "report.jpg")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="default: the one on the PATH")
    options = parser.parse_args(arguments)
    if options.chromium is None:
        parser.error("no chromium on the PATH; name one with --chromium")
    out, before = options.out.absolute(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the report says what its source was called
        try:
            write_pictures(Path("pictures"))
            explain_folder("pictures", "demo", "run", methods=["grad-cam", "layer-cam"], quiet=True)
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
                photograph(browser, Path("run/report.html"), out)
        finally:
            os.chdir(before)


if __name__ == "__main__":
    main()

"""The page in a browser: upload, click, and the picture changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browsing import Page
from PIL import Image

from gradcam_kit.demo import sample_pictures

SAMPLES = sample_pictures()


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "my photograph.png"
    Image.fromarray(SAMPLES[0].picture).save(path)
    return path


def clear(page: Page) -> None:
    page.page.locator("#picture button[aria-label='Remove Image']").click()


def upload(page: Page, path: Path) -> None:
    page.page.locator("#picture input[type=file]").set_input_files(path)


def sources(page: Page, count: int, but: list[str] | None = None) -> list[str]:
    """The addresses of the maps, as soon as there are so many, others than before."""
    images = page.page.locator(".card img")
    for _ in range(600):
        found = [] if images.count() != count else [images.nth(i).get_attribute("src") or "" for i in range(count)]
        if found and not set(found) & set(but or ()):
            return found
        page.page.wait_for_timeout(100)
    raise AssertionError(f"no {count} new maps; the message: {message(page)!r}")


def message(page: Page) -> str:
    shown = page.page.locator("#message")
    return shown.inner_text() if shown.count() and shown.is_visible() else ""


def said(page: Page, text: str) -> None:
    page.page.locator("#message", has_text=text).wait_for()


def choose(page: Page, which: str, text: str) -> None:
    box = page.page.locator(f"#{which} input")
    box.click()
    box.fill(text)
    page.page.get_by_role("option", name=text).first.click()


def move_opacity(page: Page) -> None:
    slider = page.page.locator("#opacity input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    slider.dispatch_event("pointerup")


def test_upload_choose_and_copy(opened: Callable[[str], Page], photograph: Path) -> None:
    page = opened("demo")
    said(page, "Drop a photograph")
    move_opacity(page)  # there is nothing to repaint
    upload(page, photograph)
    first = sources(page, 3)
    assert message(page) == ""
    assert "disc" in page.page.locator("#found").inner_text()
    choose(page, "target", "ring")
    other = sources(page, 3, but=first[:2])
    assert page.page.locator(".card", has_text="grad-cam: ring").count() == 1
    choose(page, "layer", "layer3")
    sources(page, 3, but=other)
    card = page.page.locator(".card").first
    card.get_by_text("Code that makes this map").click()
    code = card.locator(".cm-content")
    code.wait_for()
    assert "GradCAM(loaded.model, 'layer3')" in code.inner_text()
    assert "read_picture('my" in code.inner_text()
    page.page.locator("#found").get_by_text("disc").last.click()
    page.page.locator(".card", has_text="grad-cam: disc").wait_for()
    page.page.locator("#check").click()
    page.page.locator(".card", has_text="Sanity check of EigenCAM").wait_for()
    before = sources(page, 3)
    move_opacity(page)
    sources(page, 3, but=before)
    clear(page)
    said(page, "Drop a photograph")
    page.page.locator(".card").first.wait_for(state="hidden")
    assert page.page.get_by_text("Error", exact=True).count() == 0


def test_a_quick_second_choice_is_the_one_that_is_shown(opened: Callable[[str], Page], photograph: Path) -> None:
    page = opened("demo")
    upload(page, photograph)
    sources(page, 3)
    for name in ("ring", "triangle", "heart"):
        choose(page, "target", name)
    page.page.locator("#found").get_by_text("disc").last.click()
    cards, calm = page.page.locator(".card"), 0
    for _ in range(120):  # the first maps were of the disc too, and a busy machine takes long to replace them
        page.page.wait_for_timeout(500)
        calm = calm + 1 if all(": disc" in cards.nth(place).inner_text() for place in range(3)) else 0
        if calm == 6:
            break
    assert calm == 6, [cards.nth(place).inner_text() for place in range(3)]


def test_what_is_not_a_picture_is_a_message_and_the_app_goes_on(
    opened: Callable[[str], Page], photograph: Path, tmp_path: Path
) -> None:
    page = opened("demo")
    broken = tmp_path / "<img src=x onerror=alert(1)>.png"
    broken.write_bytes(b"no picture")
    page.page.locator("#picture input[type=file]").set_input_files(broken)
    said(page, "cannot read")
    huge = tmp_path / "huge.png"
    Image.fromarray(np.zeros((1, 1), np.uint8)).resize((8000, 7000)).save(huge)
    upload(page, huge)
    said(page, "56 million pixels")
    upload(page, photograph)
    sources(page, 3)
    assert message(page) == ""


def test_a_model_that_fails_is_a_message_and_the_app_goes_on(
    opened: Callable[[str], Page], photograph: Path, tmp_path: Path
) -> None:
    page = opened("moody_model:model")
    dark = tmp_path / "dark.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(dark)
    upload(page, dark)
    said(page, "RuntimeError: too dark")
    upload(page, photograph)
    sources(page, 3)
    assert message(page) == ""


def test_boxes_can_be_clicked(opened: Callable[[str], Page], photograph: Path) -> None:
    page = opened("small_detector:detector")
    upload(page, photograph)
    before = sources(page, 3)
    shown = page.page.locator("#target input")
    first = shown.input_value()
    picture = page.page.locator("#picture img")
    size = picture.bounding_box()
    assert size is not None
    side = 0.25 if "right" in first else 0.75
    short = min(size["width"], size["height"])  # the picture is square, fills its place, and lies in the middle
    picture.click(position={"x": size["width"] / 2 + (side - 0.5) * short, "y": size["height"] / 2})
    sources(page, 3, but=before[:2])
    assert shown.input_value() != first

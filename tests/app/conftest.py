"""The app on a port of this computer, and a browser that may ask nothing else."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from browsing import Page

from gradcam_kit.app.serving import free_port, running
from gradcam_kit.app.views import AppModel
from gradcam_kit.jobs import ModelRequest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def _gradio() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries that it imports
        pytest.importorskip("gradio", reason='the page needs Gradio: pip install -e ".[app]"')


@pytest.fixture(scope="session")
def served(_gradio: None) -> Iterator[Callable[[str], str]]:
    """From the specification of a model to the address of its app, which is started once."""
    from gradcam_kit.app.page import build_page

    known: dict[str, str] = {}
    with ExitStack() as stack:

        def serve(spec: str) -> str:
            if spec not in known:
                page = build_page(AppModel.load(ModelRequest(spec, device="cpu")))
                known[spec], _ = stack.enter_context(running(page, free_port(7960)))
            return known[spec]

        yield serve


@pytest.fixture
def opened(browser: Browser, served: Callable[[str], str]) -> Iterator[Callable[[str], Page]]:
    """From the specification of a model to its page; at the end nothing but this computer was asked."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    pages: list[Page] = []

    def goto(spec: str) -> Page:
        url = served(spec)
        context.route(lambda asked: not asked.startswith((url, "data:", "blob:")), lambda route: route.abort())
        pages.append(Page(context.new_page()))
        pages[-1].page.goto(url)
        return pages[-1]

    yield goto
    for page in pages:
        assert {url.split("/")[2].split(":")[0] for url in page.requests if url.startswith("http")} == {"127.0.0.1"}
        assert [problem for problem in page.problems if "svelte-i18n" not in problem] == []
    context.close()

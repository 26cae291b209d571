"""A page in a browser, and what can be asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

WINDOWS = [
    (1400, 900, "light"),
    (390, 844, "dark"),
    pytest.param(1400, 900, "dark", marks=pytest.mark.exhaustive),
    pytest.param(390, 844, "light", marks=pytest.mark.exhaustive),
]
"""Width, height and color scheme; two have each width and each scheme."""

CONTRAST = """element => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number), opaque = (one) => (numbers(one)[3] ?? 1) === 1;
  const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4), shares = [.2126, .7152, .0722];
  const light = (color) => shares.reduce((sum, share, i) => sum + share * linear(numbers(color)[i] / 255), 0);
  let behind = element;
  while (!opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const [ink, paper] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
}"""
"""The ratio of the lightness of a text and of what is behind it, as WCAG defines it."""

IS_BLANK = """canvas => canvas.toDataURL()
  === Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height }).toDataURL()"""


class Page:
    """A page of the browser that remembers what it was asked for and what went wrong."""

    def __init__(self, page: Tab) -> None:
        self.page = page
        page.set_default_timeout(120_000)  # for machines that are busy with other work
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(dialog.message))

    def shown(self) -> int:
        text = self.page.locator("#found").inner_text()
        return 0 if text.startswith("None") else int(text.split(" of ")[0].replace(",", ""))

    def painted(self, selector: str = "#gallery canvas") -> str:
        """The first of some heatmaps, as soon as it is painted."""
        canvas = self.page.locator(selector).first
        for _ in range(600):
            if not canvas.evaluate(IS_BLANK):
                break
            self.page.wait_for_timeout(100)
        found: str = canvas.evaluate("canvas => canvas.toDataURL()")
        return found

    def cards(self) -> int:
        return self.page.locator("#gallery .card").count()


HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
"""A name that does something where it is taken for markup."""

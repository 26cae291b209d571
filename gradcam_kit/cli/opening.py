"""Open a page in the user's browser, or say where it is."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def open_page(page: str | Path) -> str | None:
    """Open a file in the browser.

    Returns:
        None, or a line with the path if there is no display or browser.
    """
    if "://" in str(page):
        return f"--open: a browser cannot open remote storage; the page is at {page}"
    path = Path(page).resolve()
    if _has_display() and _opened(path):
        return None
    return f"--open: no display or browser here; the page is at {path}"


def _has_display() -> bool:
    """Whether a browser would have a window: without one, a browser for terminals would take over the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in _DISPLAYS)


def _opened(path: Path) -> bool:
    try:
        return webbrowser.open(path.as_uri())
    except (webbrowser.Error, OSError):
        return False

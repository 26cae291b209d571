"""Helpers for HTML pages: find templates, embed pictures, and open a browser."""

from __future__ import annotations

import base64
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jinja2 import Template

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
_MOST_LAYERS = 3  # maximum number of layers whose names are all shown


def page_template(name: str, *folders: Path) -> Template:
    """Return the template of a page. Values are escaped, and an undefined name raises an error.

    Args:
        name: name of the file.
        folders: folders to search for the file and for included templates, in this order.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template(name)


def layers_in_short(layers: Sequence[str]) -> str:
    """Join the names of a method's layers; more than 3 are shortened to the first, the last and the number.

    Example:
        >>> layers_in_short(["layer3", "layer4"])
        'layer3 + layer4'
        >>> layers_in_short([f"features.{index}" for index in range(19)])
        'features.0 + ... + features.18 (19 layers)'
    """
    if len(layers) <= _MOST_LAYERS:
        return " + ".join(layers)
    return f"{layers[0]} + ... + {layers[-1]} ({len(layers)} layers)"


def data_uri(content: bytes, kind: Literal["jpeg", "png"]) -> str:
    """Return the bytes of an encoded picture as a data URL.

    Example:
        >>> data_uri(b"...", "png")
        'data:image/png;base64,Li4u'
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def open_page(page: str | Path) -> str | None:
    """Open a page in the user's browser.

    Args:
        page: a file, or an address that begins with `http://` or `https://`.

    Returns:
        None if a browser opened the page, else a line that says where the page is.
    """
    is_address = str(page).startswith(("http://", "https://"))
    if "://" in str(page) and not is_address:
        return f"--open: a browser cannot open remote storage; the page is at {page}"
    where = str(page) if is_address else str(Path(page).resolve())
    if _has_display() and _is_opened(where if is_address else Path(where).as_uri()):
        return None
    return f"--open: no display or browser is available; the page is at {where}"


def _has_display() -> bool:
    """Whether a browser can open a window; otherwise a text browser would take over the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in _DISPLAYS)


def _is_opened(address: str) -> bool:
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False

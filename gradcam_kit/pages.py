"""Common parts of all pages: finding templates, and embedding pictures in the file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(name: str, *folders: Path) -> Template:
    """Return the template of a page. Values are escaped, and a name that was not given is an error.

    Args:
        name: name of the file.
        folders: folders to search for it and for included templates, in this order.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template(name)


def data_uri(content: bytes, kind: Literal["jpeg", "png"]) -> str:
    """Return the bytes of an encoded picture as a data URL.

    Example:
        >>> data_uri(b"...", "png")
        'data:image/png;base64,Li4u'
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""Import Gradio, and set its launch options; no other module imports Gradio."""

from __future__ import annotations

import importlib
from typing import Any

from gradcam_kit.errors import missing_extra

LARGEST_FILE = "100mb"

_CSS = """
#message { border-left: 4px solid #d97706; padding: 4px 12px }
#message:not(:has(p)), .card:not(:has(img, p)) { display: none !important }
#check { align-self: center }
.card img { width: 100%; height: 100%; object-fit: contain }
footer { display: none !important }
"""


def gradio() -> Any:
    """Return the module `gradio`.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise missing_extra("the app needs Gradio", "app") from error


def launch_options() -> dict[str, Any]:
    """Return the options of `launch`, such as system fonts and no external links.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    themes = gradio().themes
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": themes.Default(primary_hue="indigo", **fonts).set(block_info_text_color="*neutral_500"),
        "css": _CSS,
        "footer_links": [],
        "max_file_size": LARGEST_FILE,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
    }

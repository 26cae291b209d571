"""The page about a run: a template, in which every text is escaped, and the data that its script shows."""

from __future__ import annotations

import base64
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.store import Store
from gradcam_kit.render import colormap_table
from gradcam_kit.report.collect import MOST_PICTURES, Collected, collect

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(out: str, seconds: float | None = None) -> str:
    """Write `report.html` of a run, and beside it thumbnails if there are many; returns where the page is.

    Args:
        out: the folder of the run.
        seconds: how long the run took, if that is known.

    Raises:
        OptionError: there is no run.
    """
    store = Store.at(out)
    manifest = store.manifest()
    if manifest is None or not store.complete():
        raise OptionError(f"{out!r} holds no run with complete shards; make one: gradcam-kit run SOURCE --out {out}")
    collected = collect(store, list(manifest.get("metrics", ())))
    page = render(collected, manifest, seconds)
    with store.named():
        store.folder.remove("report")
        for name, jpeg in collected.thumbnails.items():
            store.folder.put(name, jpeg)
        store.folder.write("report.html", page.encode("utf-8", "backslashreplace"))
    return store.place("report.html")


def render(collected: Collected, manifest: dict[str, Any], seconds: float | None) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    figures = collected.figures
    data = {
        "methods": collected.methods,
        "pictures": collected.pictures,
        "classes": collected.classes,
        "pairs": collected.pairs,
        "colors": base64.b64encode(colormap_table("jet").tobytes()).decode(),
    }
    return environment.get_template("report.html").render(
        data=data,
        figures=figures,
        manifest=manifest,
        methods=collected.methods,
        measured=collected.measured,
        layers={name: " + ".join(layers) for name, layers in manifest["layers"].items()},
        shown=len(collected.pictures),
        most=MOST_PICTURES,
        seconds=seconds,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )

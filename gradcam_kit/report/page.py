"""Render the report of a run: fill in a template, which escapes all text, and the JSON data for its script."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gradcam_kit.comparison.document import TEMPLATES
from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.request import Targets
from gradcam_kit.jobs.storage.ownership import check_page
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.measuring import by_method, not_counted
from gradcam_kit.metrics.labels import metric_label
from gradcam_kit.metrics.registry import described
from gradcam_kit.pages import layers_in_short, page_template
from gradcam_kit.render import colormap_table
from gradcam_kit.report import notes
from gradcam_kit.report.collect import Collected, Keep, collect
from gradcam_kit.targets.scores import WORDS, are_probabilities

_TEMPLATES = (Path(__file__).parent / "templates", TEMPLATES)  # the latter holds the style of comparison tables
_COLORMAPS = "jet", "viridis", "bone"  # the colors of the overlays, colors for color-blind readers, and gray
_SPEED = "report/speed.json"
_THUMBNAIL = re.compile(r"\d+\.jpg")


def write_report(out: str, pictures: int = 0, seconds: float = 0.0, overwrite: bool = False) -> str:
    """Write `report.html` of a run, and thumbnails beside it if there are many; return the path of the page.

    Args:
        out: the folder of the run.
        pictures: number of pictures explained since the page was last written.
        seconds: time in seconds that these explanations took.
        overwrite: replace a `report.html` that is not the page of a run.

    Raises:
        OptionError: the folder holds no run, or `report.html` is not the page of a run.
        InputError: `run.json` or a shard is damaged, or was not written by a run.
    """
    store = Store.at(out)
    manifest = store.run_manifest()
    if manifest is None or not store.complete():
        raise OptionError(
            f"{out!r} holds no run with complete shards; make one: gradcam-kit run SOURCE --model SPEC --out {out}"
        )
    if not overwrite:
        check_page(store.folder, "move it, or replace it: gradcam-kit report DIR --overwrite")
    with store.named():
        # computed first, so that the page does not count as current if rows change meanwhile
        digest = store.digest()
        collected = collect(store, manifest, _keeper(store))
        speed = _speed(store, pictures, seconds)
        page = render(collected, manifest, speed, digest)
        store.folder.write("report.html", page.encode("utf-8", "backslashreplace"))
    return store.place("report.html")


def is_current(out: str) -> bool:
    """Whether the page of a run exists and was made from the current rows and metrics."""
    store = Store.at(out)
    page = store.folder.read("report.html")
    return page is not None and store.digest().encode() in page


def render(collected: Collected, manifest: dict[str, Any], speed: float | None, digest: str) -> str:
    """Return the page as text; `speed` is in pictures per second, and `digest` identifies rows and metrics."""
    layers = {name: layers_in_short(own) for name, own in manifest["layers"].items()}
    data = {
        "methods": collected.methods,
        "layers": layers,
        "pictures": collected.pictures,
        "classes": collected.classes,
        "pairs": collected.pairs,
        "percent": are_probabilities(manifest.get("scores")),
        "counts": {
            "classes": len(collected.figures.predicted | collected.figures.labels),
            "pairs": len(collected.figures.pairs),
        },
        "confidence": collected.figures.histogram,
        "colors": [[name, base64.b64encode(colormap_table(name).tobytes()).decode()] for name in _COLORMAPS],
    }
    return page_template("report.html", *_TEMPLATES).render(
        data=data,
        figures=collected.figures,
        manifest=manifest,
        layers=[layer for layer in dict.fromkeys(layers.values()) if layer],
        collected=collected,
        metrics=[metric_label(name) for name in dict.fromkeys(line["metric"] for line in collected.measured)],
        means=by_method(collected.measured),
        left_out=not_counted(collected.measured),
        settings=described(collected.settings),
        explained=_explained(manifest["targets"], manifest["class_names"]),
        scores=WORDS.get(str(manifest.get("scores"))),
        speed=speed,
        failures=notes.failures(collected.figures),
        warnings=notes.warnings(manifest, collected.figures),
        notes=notes.notes(manifest),
        command=notes.command(manifest),
        versions=notes.versions(manifest),
        digest=digest,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _keeper(store: Store) -> Keep:
    """Return a function that writes files beside the page, after removing the files of an earlier page."""
    begun: set[str] = set()

    def keep(name: str, content: bytes) -> None:
        folder = name.rpartition("/")[0]
        if folder not in begun:
            old = [f"{folder}/{name}" for name in store.folder.names(folder) if _THUMBNAIL.fullmatch(name)]
            store.folder.remove(*old)
            begun.add(folder)
        store.folder.put(name, content)

    return keep


def _explained(targets: str, names: Sequence[str] | None) -> str:
    """Return a description of the explained classes."""
    if targets in ("predicted", "label"):
        return {"predicted": "the predicted class", "label": "the class of the label"}[targets]
    parsed = Targets.parse(targets)
    if parsed.kind == "top":
        return f"the {parsed.number} most probable classes"
    if parsed.kind == "name":
        return parsed.name
    return names[parsed.number] if names and 0 <= parsed.number < len(names) else f"class {targets}"


def _speed(store: Store, pictures: int, seconds: float) -> float | None:
    """Return pictures per second over the complete run, and store the totals for the next call."""
    try:
        before, took = map(float, json.loads(store.folder.read(_SPEED) or "[0, 0]"))
    except (OSError, TypeError, ValueError):  # ignore a damaged or invalid file
        before, took = 0.0, 0.0
    if pictures and seconds:
        before, took = before + pictures, took + seconds
        store.folder.write(_SPEED, json.dumps([before, took]).encode())
    return before / took if took > 0 else None

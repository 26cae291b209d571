"""Explain the bundled pictures with every method, and score with masks how well each method finds the objects."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor

from gradcam_kit.demo import sample_pictures
from gradcam_kit.errors import GradCamKitError
from gradcam_kit.jobs.progress import MethodProgress
from gradcam_kit.jobs.request import ModelRequest
from gradcam_kit.jobs.storage.addresses import check_local
from gradcam_kit.jobs.storage.claims import claim
from gradcam_kit.jobs.storage.folders import folder_at
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.methods import METHODS
from gradcam_kit.pixels.pictures import write_picture
from gradcam_kit.render import contact_sheet, overlays

# With the settings of its paper, each of these methods would take as long as all other methods together.
_OPTIONS: dict[str, dict[str, Any]] = {"ss-cam": {"samples": 4}, "rise": {"masks": 200}}


@dataclass(frozen=True)
class DemoRow:
    """The result of a method, or of a map that is independent of the model.

    Attributes:
        name: name of the method with its options, or of the map in parentheses.
        share: mean share of the heatmap that lies on the object, in [0, 1].
        seconds: the time for all pictures; None for a map that is independent of the model.
    """

    name: str
    share: float
    seconds: float | None = None


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        rows: the result of each method, sorted by the share of the heatmaps on the objects, largest first.
        sheet: the file with all overlays.
        overlays: the folder with one file for each overlay.
        unsuited: the methods that do not suit this model.
    """

    rows: tuple[DemoRow, ...]
    sheet: Path
    overlays: Path
    unsuited: tuple[str, ...]


def run_demo(out: Path, console: Console | None = None, overwrite: bool = False) -> DemoResult:
    """Explain the bundled pictures with every method, and write each overlay and a sheet with all overlays.

    Args:
        out: folder for the pictures.
        console: where progress is shown; None = nowhere.
        overwrite: replace files that were not written by a demo.

    Raises:
        OptionError: `out` is on remote storage, cannot be written, or holds a file that no demo wrote and that would
            be replaced.
    """
    check_local(out, "demo")
    samples = sample_pictures()
    overlay_names = [f"overlays/{sample.path.name}.{name}.jpg" for sample in samples for name in METHODS]
    claim(folder_at(out), "demo.json", ["methods.png", *overlay_names], overwrite)
    pictures = np.stack([sample.picture for sample in samples])
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]))
    explainer = load_explainer(ModelRequest("demo", device="cpu"))
    images = torch.stack([explainer.loaded.transform(picture) for picture in pictures])
    noise = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    rows = [
        DemoRow("(random)", _share_on_object(noise, masks)),
        DemoRow("(the same everywhere)", _share_on_object(torch.ones_like(noise), masks)),
    ]
    rendered = [list(pictures)]
    folder = out / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    titles, unsuited = ["picture"], []
    with MethodProgress(console, len(METHODS)) as progress:
        for name, method in METHODS.items():
            options = _OPTIONS.get(name, {})
            title = ", ".join([name, *(f"{option}={value}" for option, value in options.items())])
            start = time.perf_counter()
            try:
                with progress.method(title):
                    heatmaps = method(explainer.model, **options)(images)
            except GradCamKitError:
                progress.skip()
                unsuited.append(name)  # attention methods and D-RISE do not suit the demo's convolutional classifier
                continue
            rows.append(DemoRow(title, _share_on_object(heatmaps, masks), time.perf_counter() - start))
            titles.append(title)
            rendered.append(list(overlays(pictures, heatmaps)))
            for sample, overlay in zip(samples, rendered[-1], strict=True):
                write_picture(folder / f"{sample.path.name}.{name}.jpg", overlay)
    sheet = out / "methods.png"
    grid = contact_sheet(
        rendered,
        column_titles=[sample.name for sample in samples],
        row_titles=titles,
        cell_size=pictures.shape[1],
    )
    write_picture(sheet, grid)
    return DemoResult(tuple(sorted(rows, key=lambda row: -row.share)), sheet, folder, tuple(unsuited))


def _share_on_object(heatmaps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n h w"]) -> float:
    """Return the mean share of a heatmap's sum that lies on the object; an empty map has the share 0."""
    inside = (heatmaps * masks).sum((1, 2))
    return float((inside / heatmaps.sum((1, 2)).clamp(min=1e-9)).mean())

"""A run on this machine: pictures are read in threads, explained in batches, and written shard by shard."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import gradcam_kit
from gradcam_kit.checkpoints import weights_hash
from gradcam_kit.jobs.decode import batches
from gradcam_kit.jobs.explainer import Explained, Explainer
from gradcam_kit.jobs.index import index_pictures
from gradcam_kit.jobs.overlays import OverlayWriter
from gradcam_kit.jobs.request import Problems, RunRequest, RunSummary
from gradcam_kit.jobs.setup import make_explainer
from gradcam_kit.jobs.store import Row, Store
from gradcam_kit.methods import BaseCAM


def run(request: RunRequest, console: Console | None = None) -> RunSummary:
    """Explain all pictures of a source, and leave rows and overlays in a folder.

    Args:
        request: what is asked for.
        console: where notes about the model and, on a terminal, the progress are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is wrong; the folder is as it was.
    """
    start = time.monotonic()
    console = console or Console(quiet=True)
    store = Store(request.out)
    store.check(request.overwrite)
    entries = index_pictures(request.source, exclude=request.out)
    explainer = make_explainer(request, request.methods, entries, console)
    problems = Problems()
    with OverlayWriter(request.threads) as overlays, _progress(console) as progress:
        bar = progress.add_task("explaining", total=len(entries))
        done, wanted = 0, len(entries) if request.overlays is None else request.overlays
        for number, shard in enumerate(batches(entries, request.shard_size)):
            rows: list[Row] = []
            for explained in explainer.stream(shard, request.threads, request.batch_size, verify=number == 0):
                if done == 0:  # not before: a request that turns out to be wrong leaves the folder as it was
                    store.begin(_manifest(request, explainer, len(entries)))
                rows.extend(explained.rows)
                if explained.error is not None:
                    problems.add(explained.entry.key, explained.error)
                elif explained.box is not None and done < wanted:
                    overlays.add(explained.entry, explained.box, _overlays(store, explained))
                done += 1
                progress.update(bar, completed=done)
                if problems.count and request.fail_fast:
                    break
            if problems.count and request.fail_fast:
                break  # a shard is written whole or not at all
            store.write_shard(number, rows)
    for entry, error in overlays.failures.items():
        problems.add(entry.key, error)
    return problems.summary(request.out, done, time.monotonic() - start)


def _overlays(store: Store, explained: Explained) -> dict[Path, Float[np.ndarray, "h w"]]:
    """Heatmaps of one picture by the paths of their overlays."""
    return {
        store.overlay_path(explained.entry.key, method, rank): heatmap
        for method, heatmaps in explained.heatmaps().items()
        for rank, heatmap in enumerate(heatmaps)
    }


def _manifest(request: RunRequest, explainer: Explainer, pictures: int) -> dict[str, Any]:
    """All that determines the rows, as plain values."""
    loaded = explainer.loaded
    return {
        "format": 1,
        "source": request.source,
        "pictures": pictures,
        "shard_size": request.shard_size,
        "model": request.model,
        "checkpoint": None if request.checkpoint is None else request.checkpoint.name,
        "weights": loaded.weights,
        "weights_sha256": weights_hash(loaded.model),
        "class_names": loaded.class_names,
        "transform": loaded.transform.describe(),
        "methods": {cam.name: _parameters(cam) for cam in explainer.cams},
        "layers": {cam.name: list(cam.target_layers or ()) for cam in explainer.cams},
        "targets": request.targets,
        "dtype": request.dtype,
        "versions": {
            "gradcam_kit": gradcam_kit.__version__,
            "python": platform.python_version(),
            **{library: version(library) for library in ("torch", "torchvision", "numpy", "pillow")},
        },
    }


def _parameters(cam: BaseCAM) -> dict[str, Any]:
    """The settings of a method but for `batch_size`, which changes the cost and not the map."""
    plain = {name: value for name, value in vars(cam).items() if isinstance(value, str | int | float | None)}
    return {name: value for name, value in plain.items() if name != "batch_size"}


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)

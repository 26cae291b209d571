"""Export the heatmaps of a run to formats that other programs read."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from skimage.measure import label, regionprops

from gradcam_kit.errors import InputError, OptionError, UnknownNameError, did_you_mean
from gradcam_kit.jobs.results import Run, load_run
from gradcam_kit.jobs.storage.folders import Folder, LocalFolder, folder_at
from gradcam_kit.jobs.storage.rows import Row, heatmap_of
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.measuring import metric_fields
from gradcam_kit.pixels.opencv import cv2
from gradcam_kit.tables import csv_text

_LARGEST = 2**30  # maximum number of pixels of a picture
_HEAD = 2**16  # number of leading bytes that show whether an export wrote a file
_BEGINS = {
    "csv": re.compile(rb"path,method,layer,rank,target,target_name,score,label,"),
    "fiftyone": re.compile(rb'{"samples": \[{"filepath": "(.*"_cls": "Heatmap"|[^}]{60000})', re.DOTALL),
    "coco": re.compile(rb'{"info": {"description": "Boxes around (the regions where|what) '),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR.{8}\x08\x00", re.DOTALL),  # 8-bit gray
    "npz": re.compile(rb"PK\x03\x04.{26}heatmap\.npy", re.DOTALL),
}
"""Patterns that match the first bytes of exported files, by kind of file."""


def export_run(
    directory: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    methods: Sequence[str] = (),
    threshold: float = 0.5,
    overwrite: bool = False,
) -> str:
    """Write the results of a run in another format; failed pictures appear only in the table ("csv").

    Args:
        directory: the folder of the run.
        to: a name in `FORMATS`.
        out: output folder, possibly on remote storage; None = `export/FORMAT` in the folder of the run.
        methods: methods to export; empty = all.
        threshold: for boxes ("coco"), the share of a heatmap's maximum that all positions of a region reach; each box
            encloses one connected region.
        overwrite: also replace files that no export wrote.

    Returns:
        The output folder.

    Raises:
        GradCamKitError: the folder holds no run or no rows, the format or a method does not exist, the threshold is
            invalid, all pictures failed, or a file that no export wrote would be replaced. In these cases, nothing is
            written.
    """
    if to not in FORMATS:
        raise UnknownNameError(
            f"there is no format {to!r}; formats are {', '.join(FORMATS)}{did_you_mean(to, FORMATS)}"
        )
    if not 0 < threshold <= 1:
        raise OptionError(f"the threshold is {threshold}; expected a share of the maximum, above 0 and at most 1")
    run = load_run(directory)
    for method in methods:
        if method not in run.methods:
            hint = did_you_mean(method, run.methods)
            raise UnknownNameError(f"the run has no method {method!r}; it has {', '.join(run.methods)}{hint}")
    root = os.fspath(directory if out is None else out)
    target = folder_at(root if out is not None else f"{root.rstrip('/')}/export/{to}")
    rows = (row for row in run if (row["status"] == "ok" or to == "csv") and row["method"] in (methods or run.methods))
    first = next(rows, None)
    if first is None:
        why = f"no row of {os.fspath(directory)!r} has a heatmap ({len(run)} checked); only csv includes failures"
        if to == "csv" or not len(run):
            why = f"{os.fspath(directory)!r} has no rows yet; run its command again to resume"
        raise OptionError(f"there is nothing to export: {why}")
    if not overwrite:
        _check_replaceable(target, to, _names(run, to, methods or run.methods))
    with run.store.named():
        FORMATS[to](run, chain([first], rows), target, threshold)
    return target.root


def on_picture(row: Row) -> np.ndarray:
    """Return a row's heatmap as float32 in [0, 1] at the size of the picture, 0 outside the part that the model saw."""
    height, width = row["picture_height"], row["picture_width"]
    x0, y0, x1, y1 = box = row["box"]
    if not (0 < height * width <= _LARGEST and height > 0 and all(map(math.isfinite, box)) and x0 < x1 and y0 < y1):
        raise InputError(
            f"the row of {row['path']!r} is damaged: its picture is {width} x {height}, and its box {box}; expected "
            "1 to 2**30 pixels, and finite corners with x0 < x1 and y0 < y1"
        )
    stored = heatmap_of(row).astype(np.float32)
    # Stored values lie at the centers of their cells, the first one half a cell inside the box (align_corners=False).
    scale_x, scale_y = stored.shape[1] / (x1 - x0), stored.shape[0] / (y1 - y0)
    x = (np.arange(width, dtype=np.float32) + 0.5 - x0) * scale_x - 0.5
    y = (np.arange(height, dtype=np.float32) + 0.5 - y0) * scale_y - 0.5
    grid_x, grid_y = np.meshgrid(x.clip(0, stored.shape[1] - 1), y.clip(0, stored.shape[0] - 1))
    found: np.ndarray = cv2.remap(stored, grid_x, grid_y, cv2.INTER_LINEAR)
    outside_x = (np.arange(width) + 0.5 < x0) | (np.arange(width) + 0.5 > x1)
    outside_y = (np.arange(height) + 0.5 < y0) | (np.arange(height) + 0.5 > y1)
    found[outside_y] = 0
    found[:, outside_x] = 0
    return found


def boxes_of(heatmap: np.ndarray, threshold: float) -> list[tuple[list[float], float]]:
    """Return boxes `[x, y, width, height]` around connected regions with values of at least `threshold` * maximum.

    Each box comes with the largest value of its region; boxes with the largest values come first.
    """
    if heatmap.max() <= 0:
        return []
    regions = regionprops(label(heatmap >= threshold * heatmap.max(), connectivity=2), intensity_image=heatmap)
    found = []
    for region in regions:
        top, left, bottom, right = region.bbox
        box = [float(left), float(top), float(right - left), float(bottom - top)]
        found.append((box, float(region.intensity_max)))
    return sorted(found, key=lambda one: -one[1])


def _to_fiftyone(run: Run, rows: Iterator[Row], target: Folder, threshold: float) -> None:
    """Write `samples.json` for `fiftyone.Sample.from_dict`, and the gray pictures to which it refers."""
    samples: dict[str, dict[str, Any]] = {}
    for row in rows:
        # FiftyOne's database accepts only UTF-8.
        place = os.fsencode(run.path_of(row["path"])).decode(errors="backslashreplace")
        sample = samples.setdefault(row["path"], {"filepath": place, "tags": []})
        if row["label"] is not None:
            sample["ground_truth"] = {"_cls": "Classification", "label": row["label"]}
        if row["predicted_name"] is not None:
            score = row["top_scores"][0]
            certain = {"confidence": score} if 0 <= score <= 1 else {"score": score}  # a confidence is in [0, 1]
            sample["prediction"] = {"_cls": "Classification", "label": row["predicted_name"], **certain}
        name = f"heatmaps/{_put_gray(run.store, row, target, 'heatmaps/')}"
        map_path = os.path.abspath(target.path(name)) if isinstance(target, LocalFolder) else f"{target.root}/{name}"
        sample[_field(row)] = {"_cls": "Heatmap", "map_path": map_path, "range": [0, 255]}
    target.write("samples.json", json.dumps({"samples": list(samples.values())}).encode())


def _to_coco(run: Run, rows: Iterator[Row], target: Folder, threshold: float) -> None:
    """Write a COCO file per method: pictures, classes (counted from 1), and boxes with class score and peak value."""
    found: dict[str, dict[str, Any]] = {}
    categories: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        coco = found.setdefault(row["method"], {"images": [], "annotations": []})
        if not coco["images"] or coco["images"][-1]["file_name"] != row["path"]:
            size = {"width": row["picture_width"], "height": row["picture_height"]}
            coco["images"].append({"id": len(coco["images"]) + 1, "file_name": row["path"], **size})
        category = 0 if row["target"] is None else row["target"] + 1
        name = "heatmap" if row["target"] is None else row["target_name"] or str(row["target"])
        categories[row["method"]][category] = name
        for (x, y, width, height), heat in boxes_of(on_picture(row), threshold):
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": coco["images"][-1]["id"],
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                    "area": width * height,
                    "iscrowd": 0,
                    "heat": heat,
                    **({} if row["score"] is None else {"score": row["score"]}),
                }
            )
    for method, coco in found.items():
        named = [{"id": category, "name": name} for category, name in sorted(categories[method].items())]
        info = {"description": f"Boxes around the regions where {method} reaches {threshold} of its largest value"}
        target.write(f"{method}.json", json.dumps({"info": info, **coco, "categories": named}).encode())


def _to_png(run: Run, rows: Iterator[Row], target: Folder, threshold: float) -> None:
    """Write heatmaps as 8-bit gray pictures at the size of the originals; values are clipped to [0, 1]."""
    for row in rows:
        _put_gray(run.store, row, target)


def _put_gray(store: Store, row: Row, target: Folder, folder: str = "") -> str:
    done, content = cv2.imencode(".png", (on_picture(row).clip(0, 1) * 255).round().astype(np.uint8))
    assert done
    name = _file(store, row, ".png")
    target.put(folder + name, content.tobytes())
    return name


def _to_npz(run: Run, rows: Iterator[Row], target: Folder, threshold: float) -> None:
    """Write an `.npz` file per row: the arrays `heatmap` (at the layer's resolution), `box`, `target` and `score`."""
    for row in rows:
        buffer = BytesIO()
        target_, score = (-1 if row["target"] is None else row["target"]), row["score"]
        np.savez_compressed(
            buffer,
            heatmap=heatmap_of(row).astype(np.float32),
            box=np.array(row["box"]),
            target=target_,
            score=np.float32(np.nan if score is None else score),
        )
        target.put(_file(run.store, row, ".npz"), buffer.getvalue())


def _to_csv(run: Run, rows: Iterator[Row], target: Folder, threshold: float) -> None:
    """Write a table of all rows, including failures, with the position of the maximum instead of the heatmap."""
    columns = ["path", "method", "layer", "rank", "target", "target_name", "score", "label", "predicted"]
    columns += [
        "predicted_name",
        "correct",
        "is_empty",
        *(one.name for one in metric_fields(run.metrics)),
    ]
    shown = []
    for row in rows:
        box = dict(zip(("x0", "y0", "x1", "y1"), row["box"] or (), strict=False))
        hottest = {} if row["status"] != "ok" or row["is_empty"] else _hottest(row)
        shown.append({**{name: row[name] for name in (*columns, "status", "error")}, **box, **hottest})
    columns += ["x0", "y0", "x1", "y1", "hottest_x", "hottest_y", "status", "error"]
    target.write("rows.csv", csv_text(columns, shown).encode("utf-8", "backslashreplace"))


def _hottest(row: Row) -> dict[str, float]:
    """Return the x and y of a heatmap's maximum, in pixels of the picture."""
    stored, (x0, y0, x1, y1) = heatmap_of(row), row["box"]
    y, x = np.unravel_index(int(stored.argmax()), stored.shape)
    found = x0 + (x + 0.5) * (x1 - x0) / stored.shape[1], y0 + (y + 0.5) * (y1 - y0) / stored.shape[0]
    return {name: round(float(value), 1) for name, value in zip(("hottest_x", "hottest_y"), found, strict=True)}


FORMATS: dict[str, Callable[[Run, Iterator[Row], Folder, float], None]] = {
    "fiftyone": _to_fiftyone,
    "coco": _to_coco,
    "png": _to_png,
    "npz": _to_npz,
    "csv": _to_csv,
}
"""The function that writes each export format."""


def _field(row: Row) -> str:
    name = "".join(letter if letter.isalnum() else "_" for letter in row["method"].replace("+", "p"))
    return name if row["rank"] == 0 else f"{name}_{row['rank'] + 1}"


def _file(store: Store, row: Row, suffix: str) -> str:
    name = store.overlay_name(row["path"], row["method"], row["rank"])
    return str(PurePosixPath(*PurePosixPath(name).parts[1:])).removesuffix(".jpg") + suffix


def _check_replaceable(target: Folder, to: str, names: Iterable[str]) -> None:
    """Refuse to replace files that no export wrote, judged by their first bytes.

    Raises:
        OptionError: one of the files exists, and no export wrote it; the message names the first such file.
    """
    for name in names:
        if not target.holds(name):
            continue
        try:
            with target.open(name) as file:
                head = file.read(_HEAD)
        except OSError:  # a folder, a broken link, or an unreadable file
            head = b""
        kind = "fiftyone" if name == "samples.json" else "png" if to == "fiftyone" else to
        if not _BEGINS[kind].match(head):
            raise OptionError(
                f"{target.root}/{name} already exists and is not an export to {to}; choose another folder, "
                "or replace it with --overwrite"
            )


def _names(run: Run, to: str, methods: Sequence[str]) -> Iterator[str]:
    """Yield the names of the files that an export will write."""
    if to in ("csv", "coco"):
        yield from ["rows.csv"] if to == "csv" else [f"{method}.json" for method in methods]
        return
    if to == "fiftyone":
        yield "samples.json"
    for batch in run.table(["path", "method", "rank", "status"]).to_batches():
        for row in batch.to_pylist():
            if row["status"] == "ok" and row["method"] in methods:
                name = _file(run.store, row, ".npz" if to == "npz" else ".png")
                yield f"heatmaps/{name}" if to == "fiftyone" else name

"""A run as other programs read it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from skimage.measure import label, regionprops

from gradcam_kit.errors import OptionError, UnknownNameError, did_you_mean
from gradcam_kit.jobs.files import LocalFolder
from gradcam_kit.jobs.results import Run, load_run
from gradcam_kit.jobs.rows import Row, heatmap_of
from gradcam_kit.jobs.store import Store


def export_run(
    directory: str, to: str, out: Path | None = None, *, methods: Sequence[str] = (), threshold: float = 0.5
) -> str:
    """Write the heatmaps of a run in another format; pictures that failed are in the table ("csv") alone.

    Args:
        directory: the folder of the run.
        to: a name in `FORMATS`.
        out: where the files go; None = `export/FORMAT` in the folder of the run.
        methods: those that are wanted; none = all.
        threshold: for boxes, the share of the largest value from which on a heatmap counts.

    Returns:
        The folder with what was written.

    Raises:
        GradCamKitError: there is no run, or no such format or method.
    """
    if to not in FORMATS:
        raise UnknownNameError(f"there is no format {to!r}{did_you_mean(to, FORMATS)}; known are {', '.join(FORMATS)}")
    if not 0 < threshold <= 1:
        raise OptionError(f"the threshold is {threshold}; expected a share of the largest value, above 0 and up to 1")
    run = load_run(directory)
    for method in methods:
        if method not in run.methods:
            hint = did_you_mean(method, run.methods)
            raise UnknownNameError(f"the run has no method {method!r}{hint}; it has {', '.join(run.methods)}")
    target = LocalFolder(str(out or Path(directory, "export", to)))
    rows = (row for row in run if (row["status"] == "ok" or to == "csv") and row["method"] in (methods or run.methods))
    with run.store.named():
        FORMATS[to](run, rows, target, threshold)
    return target.root


def on_picture(row: Row) -> np.ndarray:
    """The heatmap of a row as float32 in [0, 1] at the size of the whole picture; 0 where the model saw nothing."""
    height, width = row["picture_height"], row["picture_width"]
    x0, y0, x1, y1 = row["box"]
    stored = heatmap_of(row).astype(np.float32)
    # The center of a stored value lies half a step inside the box; the same mapping as linear interpolation has.
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
    """Boxes `[x, y, width, height]` around what is connected above a share of the largest value, hottest first.

    The second value of each is the largest value in it.
    """
    if heatmap.max() <= 0:
        return []
    regions = regionprops(label(heatmap >= threshold * heatmap.max(), connectivity=2), intensity_image=heatmap)
    found = []
    for region in regions:
        top, left, bottom, right = region.bbox
        box = [float(left), float(top), float(right - left), float(bottom - top)]
        found.append((box, float(heatmap[top:bottom, left:right].max())))
    return sorted(found, key=lambda one: -one[1])


def _to_fiftyone(run: Run, rows: Iterator[Row], target: LocalFolder, threshold: float) -> None:
    """`samples.json` with what `fiftyone.Sample.from_dict` reads, with maps that are gray pictures."""
    samples: dict[str, dict[str, Any]] = {}
    for row in rows:
        sample = samples.setdefault(row["path"], {"filepath": run.path_of(row["path"]), "tags": []})
        if row["label"] is not None:
            sample["ground_truth"] = {"_cls": "Classification", "label": row["label"]}
        if row["predicted_name"] is not None:
            score = row["top_scores"][0]
            sample["prediction"] = {"_cls": "Classification", "label": row["predicted_name"], "confidence": score}
        place = target.path(f"heatmaps/{_put_gray(run.store, row, target, 'heatmaps/')}")
        sample[_field(row)] = {"_cls": "Heatmap", "map_path": str(place.absolute()), "range": [0, 255]}
    target.write("samples.json", json.dumps({"samples": list(samples.values())}).encode())


def _to_coco(run: Run, rows: Iterator[Row], target: LocalFolder, threshold: float) -> None:
    """One file per method: pictures, classes, and boxes with the score of the class and the heat in the box."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        coco = found.setdefault(row["method"], {"images": [], "categories": [], "annotations": []})
        if not coco["images"] or coco["images"][-1]["file_name"] != row["path"]:
            size = {"width": row["picture_width"], "height": row["picture_height"]}
            coco["images"].append({"id": len(coco["images"]) + 1, "file_name": row["path"], **size})
        category = 0 if row["target"] is None else row["target"] + 1
        if category not in (known["id"] for known in coco["categories"]):
            coco["categories"].append({"id": category, "name": row["target_name"] or str(row["target"])})
        for box, heat in boxes_of(on_picture(row), threshold):
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": coco["images"][-1]["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": row["score"],
                    "heat": heat,
                }
            )
    for method, coco in found.items():
        target.write(f"{method}.json", json.dumps(coco).encode())


def _to_png(run: Run, rows: Iterator[Row], target: LocalFolder, threshold: float) -> None:
    """Gray pictures in the size of the originals, 255 where a heatmap is 1."""
    for row in rows:
        _put_gray(run.store, row, target)


def _put_gray(store: Store, row: Row, target: LocalFolder, folder: str = "") -> str:
    done, content = cv2.imencode(".png", (on_picture(row) * 255).round().astype(np.uint8))
    assert done
    name = _file(store, row, ".png")
    target.put(folder + name, content.tobytes())
    return name


def _to_npz(run: Run, rows: Iterator[Row], target: LocalFolder, threshold: float) -> None:
    """One file per picture, method and target: `heatmap` at the layer's resolution, `box`, `target`, `score`."""
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


def _to_csv(run: Run, rows: Iterator[Row], target: LocalFolder, threshold: float) -> None:
    """A table of all rows, failures too, without the heatmaps but with the place of their largest value."""
    buffer = StringIO(newline="")
    columns = ["path", "method", "layer", "target", "target_name", "score", "label", "predicted", "predicted_name"]
    writer = csv.writer(buffer)
    writer.writerow(
        [*columns, "correct", "is_empty", "x0", "y0", "x1", "y1", "hottest_x", "hottest_y", "status", "error"]
    )
    for row in rows:
        cells = [_no_formula(row[name]) for name in columns]
        if row["status"] != "ok":
            writer.writerow([*cells, *[""] * 8, row["status"], _no_formula(row["error"])])
            continue
        stored, (x0, y0, x1, y1) = heatmap_of(row), row["box"]
        y, x = np.unravel_index(int(stored.argmax()), stored.shape)
        hottest = x0 + (x + 0.5) * (x1 - x0) / stored.shape[1], y0 + (y + 0.5) * (y1 - y0) / stored.shape[0]
        place = ["", ""] if row["is_empty"] else [round(float(value), 1) for value in hottest]
        writer.writerow([*cells, row["correct"], row["is_empty"], *row["box"], *place, row["status"], ""])
    target.write("rows.csv", buffer.getvalue().encode("utf-8", "backslashreplace"))


FORMATS: dict[str, Callable[[Run, Iterator[Row], LocalFolder, float], None]] = {
    "fiftyone": _to_fiftyone,
    "coco": _to_coco,
    "png": _to_png,
    "npz": _to_npz,
    "csv": _to_csv,
}
"""What a run can be exported to."""


def _field(row: Row) -> str:
    name = "".join(letter if letter.isalnum() else "_" for letter in row["method"].replace("+", "p"))
    return name if row["rank"] == 0 else f"{name}_{row['rank'] + 1}"


def _file(store: Store, row: Row, suffix: str) -> str:
    name = store.overlay_name(row["path"], row["method"], row["rank"])
    return str(PurePosixPath(*PurePosixPath(name).parts[1:])).removesuffix(".jpg") + suffix


def _no_formula(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

"""What reads a run: from Python, and in the formats of other programs."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import disk
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from gradcam_kit import GradCAM, explain_folder, load_run
from gradcam_kit.errors import GradCamKitError, OptionError, PictureError, UnknownNameError
from gradcam_kit.jobs.export import boxes_of, export_run, on_picture
from gradcam_kit.jobs.storage.parquet import read_parquet
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.models import load_model
from gradcam_kit.pixels.decoding import read_picture
from gradcam_kit.render import overlay

METHODS = ("grad-cam", "layer-cam")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def make_run():
    disk.write_pictures(Path("pictures"))
    Path("pictures/text.jpg").write_text("no picture")
    return explain_folder(
        "pictures", "shop:net", "out", methods=METHODS, shard_size=3, report=False, quiet=True, workers=1
    )


def test_only_the_calling_thread_reads_a_table() -> None:
    """A foreign thread that lets go of the file while the interpreter ends would abort the process."""
    make_run()
    readers = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

    with Watched(Path("out/shards/00001.parquet").read_bytes()) as file:
        table = read_parquet(file, ["path", "method"])
    assert (table.num_rows, table.column_names) == (6, ["path", "method"])
    assert readers == {threading.get_ident()}


def test_a_run_is_a_table_of_rows_with_heatmaps_and_overlays() -> None:
    run = make_run()
    rows = list(run)
    assert len(run) == len(rows) == 16
    assert [run[i] for i in (0, 7, 15, -1)] == [rows[i] for i in (0, 7, 15, 15)]
    assert [row["path"] for row in run[2:5]] == [row["path"] for row in rows[2:5]]
    assert run[-3:] == rows[-3:]
    assert run[::-5] == rows[::-5]
    assert run[16:] == []
    assert run[np.int64(9)] == rows[9]
    for index in (16, -17):
        with pytest.raises(IndexError, match=f"there is no row {index}; the number of rows is 16"):
            run[index]
    with pytest.raises(TypeError):
        run["path"]
    assert repr(run) == "Run('out': 16 rows of 8 pictures, shop:net, grad-cam, layer-cam)"
    loaded = load_model("shop:net")
    for i in (0, 8):
        picture = read_picture(Path("pictures", rows[i]["path"]))
        heatmap = GradCAM(loaded.model)(loaded.transform(picture)[None])[0].numpy()
        assert run[i]["method"] == "grad-cam"
        assert np.abs(run.heatmap(i) - heatmap).max() < 2e-3
        assert run.stored_heatmap(i).shape == (7, 9)
        expected = overlay(picture, heatmap, box=loaded.transform.box(*picture.shape[:2])).astype(int)
        assert np.abs(run.overlay(i) - expected).mean() < 0.3
    odd = next(i for i, row in enumerate(rows) if row["path"] == "cup/caf\\xe9.png")
    assert run.picture(odd).shape == disk.COFFEE.shape
    broken = next(i for i, row in enumerate(rows) if row["path"] == "text.jpg")
    with pytest.raises(PictureError, match=r"text.jpg\) has no heatmap: PictureError: cannot read the picture"):
        run.heatmap(broken)
    frame = run.to_pandas()
    assert list(frame["path"]) == [row["path"] for row in rows]
    assert "heatmap" not in frame
    assert run.table(["score"]).num_rows == 16
    assert "heatmap" in run.table().column_names
    chosen = frame[(frame.method == "layer-cam") & (frame.path == "top.png")].index[0]
    assert (run[chosen]["method"], run[chosen]["path"]) == ("layer-cam", "top.png")
    assert run.overlay(chosen).shape == disk.PERSON.shape
    with pytest.raises(UnknownNameError, match=r"no column 'scores'; it has path, .*; did you mean 'score'"):
        run.to_pandas(["path", "scores"])
    assert [row["path"] for row in load_run("out")] == [row["path"] for row in rows]
    with pytest.raises(OptionError, match="'nothing' holds no run"):
        load_run("nothing")


def test_a_module_of_ones_own_is_explained_and_left_as_it_was() -> None:
    disk.write_pictures(Path("pictures"))
    torch.manual_seed(0)
    model = load_model("shop:net").model.train()
    transform, names = model.transform, model.class_names
    del model.transform, model.class_names
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"transform": transform, "report": False, "quiet": True, "overlays": 0}
    run = explain_folder("pictures", model, "out", class_names=names, layers="stage2", **options)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (run.manifest["model"], run[0]["layer"]) == ("Net", "stage2")
    assert run[0]["target_name"] in names
    with torch.no_grad():
        model.fc.bias += 1
    with pytest.raises(OptionError, match="different weights_sha256"):
        explain_folder("pictures", model, "out", class_names=names, layers="stage2", **options)


def test_a_heatmap_on_the_whole_picture_is_zero_where_nothing_was_seen() -> None:
    row = {
        "heatmap": np.ones((2, 2), "<f2").tobytes(),
        "height": 2,
        "width": 2,
        "picture_height": 6,
        "picture_width": 10,
        "box": [2.0, 0.0, 8.0, 6.0],
    }
    expected = np.zeros((6, 10))
    expected[:, 2:8] = 1
    assert np.array_equal(on_picture(row), expected)
    row["heatmap"] = np.array([[0, 1], [0, 1]], "<f2").tobytes()
    # Centers of the two columns at x = 3.5 and 6.5; between them linear.
    assert on_picture(row)[3, 2:8] == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1], abs=0.04)


def test_boxes_surround_what_is_connected() -> None:
    heatmap = np.zeros((10, 12), np.float32)
    heatmap[1:3, 2:6] = 0.6
    heatmap[3, 6] = 0.7  # touches the corner
    heatmap[7:9, 9:11] = 1
    heatmap[0, 11] = 0.3
    assert boxes_of(heatmap, 0.5) == [([9, 7, 2, 2], 1.0), ([2, 1, 5, 3], pytest.approx(0.7))]
    bent = np.zeros((6, 6), np.float32)
    bent[:, 0] = bent[5] = 0.6
    bent[1, 4] = 1  # inside the other box, and not of its region
    assert boxes_of(bent, 0.5) == [([4, 1, 1, 1], 1.0), ([0, 0, 6, 6], pytest.approx(0.6))]
    assert boxes_of(np.zeros((3, 3), np.float32), 0.5) == []


def test_exports_say_what_the_rows_say() -> None:
    run = make_run()
    rows = [row for row in run if row["status"] == "ok"]
    export_run("out", "csv")
    with open("out/export/csv/rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["path"], row["method"], row["status"]) for row in table] == [
        (row["path"], row["method"], row["status"]) for row in run
    ]
    failed = [row for row in table if row["status"] == "error"]
    assert failed
    assert all(row["error"] and not row["hottest_x"] for row in failed)
    first = next(row for row in table if row["status"] == "ok")
    assert float(first["score"]) == pytest.approx(rows[0]["score"])
    x0, _, x1, _ = rows[0]["box"]
    assert x0 <= float(first["hottest_x"]) <= x1

    assert export_run("out", "png", Path("gray"), methods=("grad-cam",)) == "gray"
    with Image.open("gray/top.png.grad-cam.png") as gray:
        assert (gray.mode, gray.size) == ("L", disk.PERSON.shape[1::-1])
        top = next(row for row in rows if row["path"] == "top.png")
        assert np.abs(np.asarray(gray) / 255 - on_picture(top)).max() < 0.003
    assert len([path for path in Path("gray").rglob("*") if path.is_file()]) == 7

    export_run("out", "npz", Path("arrays"))
    with np.load("arrays/top.png.layer-cam.npz") as arrays:
        assert arrays["heatmap"].shape == (7, 9)
        assert arrays["box"].tolist() == top["box"]

    export_run("out", "coco", Path("coco"), threshold=0.6)
    coco = json.loads(Path("coco/grad-cam.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [row["path"] for row in rows[::2]]
    for box in coco["annotations"]:
        image = coco["images"][box["image_id"] - 1]
        x, y, width, height = box["bbox"]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
    assert {box["category_id"] for box in coco["annotations"]} <= {one["id"] for one in coco["categories"]}

    names = {one["id"]: one["name"] for one in coco["categories"]}
    assert all(names[row["target"] + 1] == row["target_name"] for row in rows)
    first = coco["annotations"][0]
    x, y, width, height = first["bbox"]
    assert first["segmentation"] == [[x, y, x + width, y, x + width, y + height, x, y + height]]
    assert (first["area"], first["score"]) == (width * height, pytest.approx(rows[0]["score"]))

    export_run("out", "fiftyone", Path("fiftyone"))
    samples = json.loads(Path("fiftyone/samples.json").read_text())["samples"]
    assert len(samples) == 7
    assert {"grad_cam", "layer_cam", "prediction"} <= set(samples[0])
    assert Path(samples[0]["filepath"]).exists()
    for sample in samples:
        assert sample["filepath"].encode()  # a lone surrogate would be refused by the database of FiftyOne
        for field in ("grad_cam", "layer_cam"):
            assert sample[field]["_cls"] == "Heatmap"
            assert sample[field]["range"] == [0, 255]
            assert Path(sample[field]["map_path"]).is_absolute()
            with Image.open(sample[field]["map_path"]) as gray:
                assert gray.mode == "L"


def test_several_targets_metrics_and_formulas_in_a_table() -> None:
    disk.write_picture(Path("pictures/cat/=1+1.png"), disk.CAT)
    disk.write_picture(Path("pictures/-2.png"), disk.CAT)
    options = {"targets": "top:2", "metrics": ("average-drop",), "report": False, "quiet": True, "workers": 1}
    run = explain_folder("pictures", "shop:net", "out", methods=METHODS, **options)
    with open(Path(export_run("out", "csv"), "rows.csv"), newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["rank"] for row in table] == ["0", "1"] * 4
    assert {row["path"] for row in table} == {"'-2.png", "cat/=1+1.png"}
    for row, known in zip(table, run, strict=True):
        assert row["target_name"] == known["target_name"]
        assert float(row["average_drop"]) == pytest.approx(known["average_drop"])
        assert row["average_drop_status"] == "ok"
    arrays = sorted(str(path.relative_to("npz")) for path in Path(export_run("out", "npz", "npz")).rglob("*.npz"))
    assert arrays[:4] == [f"-2.png.{name}.npz" for name in ("grad-cam.2", "grad-cam", "layer-cam.2", "layer-cam")]
    samples = json.loads(Path(export_run("out", "fiftyone"), "samples.json").read_text())["samples"]
    assert {"grad_cam", "grad_cam_2", "layer_cam", "layer_cam_2"} <= set(samples[0])


def test_maps_that_are_not_normalized_stay_within_what_a_gray_picture_has() -> None:
    run = make_run()
    rows = [{**row, "heatmap": np.full((7, 9), 1.01, "<f2").tobytes()} for row in run if row["status"] == "ok"]
    run.store.write_shard(0, rows, {})
    for number in (1, 2):
        Path(f"out/shards/0000{number}.parquet").unlink()
    with Image.open(Path(export_run("out", "png"), "top.png.grad-cam.png")) as gray:
        assert np.asarray(gray).max() == 255


def test_nothing_to_export_is_said() -> None:
    disk.break_pictures(Path("pictures"))
    explain_folder("pictures", "shop:net", "out", report=False, quiet=True, workers=1)
    with pytest.raises(OptionError, match=r"nothing to export: no row of 'out' has a heatmap \(4 checked\); only csv"):
        export_run("out", "coco")
    assert Path(export_run("out", "csv"), "rows.csv").read_text().count("PictureError") == 4


def test_a_table_of_no_rows_is_none() -> None:
    make_run()
    for shard in Path("out/shards").iterdir():
        shard.unlink()
    for to in ("csv", "png"):
        with pytest.raises(
            OptionError, match=r"nothing to export: 'out' has no rows yet; run its command again to resume$"
        ):
            export_run("out", to)


def test_what_has_no_score_has_none_in_other_formats() -> None:
    run = make_run()
    rows = [{**row, "target": None, "score": None} for row in run.store.read_shard(2)]
    run.store.write_shard(2, rows, {})
    boxes = json.loads(Path(export_run("out", "coco"), "grad-cam.json").read_text())["annotations"]
    assert {box["category_id"] == 0: "score" in box for box in boxes} == {True: False, False: True}


def test_a_run_is_described_without_reading_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.setattr(Store, "read_shard", None)
    assert repr(run) == "Run('out': 16 rows of 8 pictures, shop:net, grad-cam, layer-cam)"


def test_exports_go_to_remote_storage() -> None:
    make_run()
    place = "memory://exports/fiftyone"
    assert export_run("out", "fiftyone", place, methods=("grad-cam",)) == place
    sample = json.loads(fsspec.filesystem("memory").cat_file("/exports/fiftyone/samples.json"))["samples"][-1]
    assert sample["grad_cam"]["map_path"] == f"{place}/heatmaps/top.png.grad-cam.png"
    assert fsspec.filesystem("memory").exists("/exports/fiftyone/heatmaps/top.png.grad-cam.png")


@pytest.mark.parametrize(
    ("directory", "to", "options", "says"),
    [
        ("out", "cocoa", {}, "formats are fiftyone, coco, png, npz, csv; did you mean 'coco'"),
        ("pictures", "csv", {}, "'pictures' holds no run"),
        ("out", "csv", {"methods": ("gradcam",)}, "the run has no method 'gradcam'; it has grad-cam"),
        ("out", "coco", {"threshold": 0.0}, "the threshold is 0.0"),
    ],
)
def test_wrong_exports(directory: str, to: str, options: dict[str, Any], says: str) -> None:
    make_run()
    with pytest.raises(GradCamKitError) as caught:
        export_run(directory, to, **options)
    assert says in str(caught.value)
    assert isinstance(caught.value, UnknownNameError | OptionError)

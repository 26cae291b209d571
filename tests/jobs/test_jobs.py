"""The rows of a run: each equals a call of the library, and failures stay with the picture at fault."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import disk
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gradcam_kit.functional import normalize
from gradcam_kit.jobs import RunRequest, RunSummary, run
from gradcam_kit.jobs.sources.index import index_pictures
from gradcam_kit.jobs.storage.rows import SCHEMA
from gradcam_kit.jobs.work.explainer import Batch, Explainer
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.jobs.work.methods import method_classes, with_methods
from gradcam_kit.jobs.work.reader import Decoded, decode
from gradcam_kit.methods import METHODS
from gradcam_kit.models import load_model
from gradcam_kit.pixels.decoding import read_picture
from gradcam_kit.transforms import PictureTransform


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def explain(source: str = "pictures", model: str = "shop:net", **options: Any) -> RunSummary:
    """A run into the folder `out`."""
    return run(RunRequest(**{"model": model, "source": source, "out": "out", "workers": 2, "report": False, **options}))


def direct(path: str, row: dict[str, Any], model: str = "shop:net") -> tuple[np.ndarray, int, float]:
    """Heatmap at the layer's resolution, target and probability, by calling the library for one picture."""
    loaded = load_model(model)
    image = loaded.transform(read_picture(path))[None]
    cam = METHODS[row["method"]](loaded.model, row["layer"])
    explanation = cam.explain(image, None if row["target"] is None else row["target"])
    heatmap = normalize(explanation.saliency[row["layer"]].clamp(min=0))[0]
    return heatmap.numpy(), row["target"], float(loaded.model(image).softmax(1)[0, row["target"]].detach())


def _image(path: str) -> torch.Tensor:
    return load_model("shop:net").transform(read_picture(path))[None]


def test_every_row_equals_a_call_of_the_library() -> None:
    pictures = disk.write_pictures(Path("pictures"))
    methods = ("layer-cam", "grad-cam", "score-cam")
    summary = explain(methods=methods, batch_size=3, shard_size=4, overlays=0)
    assert (summary.pictures, summary.failed, summary.problems, summary.exit_status) == (7, 0, (), 0)
    rows = disk.read_rows(Path("out"))
    assert [(row["path"], row["method"]) for row in rows] == [
        (key, name) for key in sorted(pictures) for name in methods
    ]
    paths = {entry.key: entry.path for entry in index_pictures("pictures", "out")}
    names = ["cat", "cup", "person"]
    for row in rows:
        heatmap, _, score = direct(paths[row["path"]], row)
        assert (row["status"], row["error"], row["layer"]) == ("ok", None, "stage2")
        assert row["heatmap"].shape == heatmap.shape == (7, 9)
        assert np.abs(row["heatmap"] - heatmap).max() < 2e-3
        assert row["is_empty"] == (heatmap.max() == 0)
        assert row["score"] == pytest.approx(score, abs=1e-5)
        assert row["target_name"] == names[row["target"]]
        picture = pictures[row["path"]]
        assert row["box"] == list(PictureTransform(size=(48, 64), resize=56).box(*picture.shape[:2]))
        assert row["label"] == (row["path"].split("/")[0] if "/" in row["path"] else None)
        assert (row["picture_height"], row["picture_width"]) == picture.shape[:2]
        assert (row["input_height"], row["input_width"]) == (48, 64)
    assert all(row["target"] == int(load_model("shop:net").model(_image(paths[row["path"]])).argmax()) for row in rows)


def test_shards_have_the_schema_and_the_pictures_in_order() -> None:
    pictures = disk.write_pictures(Path("pictures"))
    explain(shard_size=3)
    shards = sorted(Path("out/shards").iterdir())
    assert [shard.name for shard in shards] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    tables = [pq.read_table(shard) for shard in shards]
    assert all(table.schema.equals(SCHEMA) for table in tables)
    keys = [table["path"].to_pylist() for table in tables]
    assert keys == [sorted(pictures)[start : start + 3] for start in (0, 3, 6)]


def test_batches_workers_and_shards_do_not_change_the_rows() -> None:
    disk.write_pictures(Path("pictures"))
    explain(batch_size=1, workers=1, shard_size=1)
    ones = disk.read_rows(Path("out"))
    explain(batch_size=5, workers=3, shard_size=100, overwrite=True)
    for one, other in zip(ones, disk.read_rows(Path("out")), strict=True):
        assert np.abs(one.pop("heatmap") - other.pop("heatmap")).max() < 2e-3
        for name in ("score", "top_scores"):
            assert one.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
        assert one == other


def test_broken_pictures_have_one_error_row_per_method_and_harm_no_other() -> None:
    pictures = disk.write_pictures(Path("pictures"))
    broken = disk.break_pictures(Path("pictures"))
    summary = explain(methods=("grad-cam", "hires-cam"), batch_size=4)
    assert (summary.pictures, summary.failed, summary.exit_status) == (11, 4, 1)
    assert [problem.partition(":")[0] for problem in summary.problems] == broken
    rows = disk.read_rows(Path("out"))
    failed = [row for row in rows if row["status"] == "error"]
    assert [(row["path"], row["method"]) for row in failed] == [
        (key, method) for key in broken for method in ("grad-cam", "hires-cam")
    ]
    for row in failed:
        assert row["error"].startswith("PictureError: cannot read the picture: ")
        assert row["error"].count(row["path"]) == 0
        assert "\n" not in row["error"]
        assert [row[name] for name in ("layer", "target", "score", "is_empty", "heatmap", "height", "box")] == [
            None
        ] * 7
    assert {row["path"] for row in rows if row["status"] == "ok"} == set(pictures)


def test_nothing_but_broken_pictures_is_a_run_too() -> None:
    disk.break_pictures(Path("pictures"))
    assert explain().failed == 4
    assert {row["status"] for row in disk.read_rows(Path("out"))} == {"error"}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_picture_that_breaks_the_model_fails_alone(batch_size: int) -> None:
    for name in "abd":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)
    disk.write_picture(Path("pictures/c.png"), disk.BLACK)
    summary = explain(model="shop:picky", batch_size=batch_size, methods=("grad-cam", "layer-cam"))
    assert summary.problems == ("c.png: too dark for me",)
    rows = disk.read_rows(Path("out"))
    assert [row["error"] for row in rows if row["path"] == "c.png"] == ["RuntimeError: too dark for me"] * 2
    assert all(row["status"] == "ok" for row in rows if row["path"] != "c.png")


@pytest.mark.parametrize("first", ["names", "classes", "takes"])
def test_a_model_may_keep_what_it_computed_when_no_gradients_were_needed(first: str) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    request = RunRequest("shop:keeping", source="pictures", out="out", targets="top:2", layers=("stage2",), workers=1)
    explainer = load_explainer(request)
    [one] = [decode(entry, explainer.loaded.transform) for entry in index_pictures("pictures", "out")]
    assert isinstance(one, Decoded)
    image = one if first == "names" else None
    explainer = with_methods(explainer, method_classes(request.methods), request.layers, image, 8)
    if first == "takes":
        assert explainer.takes(one)
    assert (explainer.model.grid is None) == (first == "classes")
    [explained] = explainer.explain(Batch([one]))
    assert [row["status"] for row in explained.rows] == ["ok", "ok"]


def test_a_method_that_breaks_is_told_from_a_picture_that_breaks_the_model() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/c.png"), disk.BLACK)
    summary = explain(methods=("grad-cam", "shop:Moody"))
    said = "Moody failed, although the model itself succeeded: ValueError: not in the mood"
    assert summary.problems == (f"c.png: {said}",)
    rows = disk.read_rows(Path("out"))
    assert [row["error"] for row in rows] == [None, None, *[f"MethodError: {said}"] * 2]


def test_values_that_are_not_finite_are_an_error_of_their_picture() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.BLACK)
    disk.write_picture(Path("pictures/b.png"), disk.CAT)
    summary = explain(model="shop:poisoned")
    assert summary.failed == 1
    rows = disk.read_rows(Path("out"))
    assert [row["status"] for row in rows] == ["error", "ok"]
    assert rows[0]["error"].startswith("NonFiniteError: image 0")
    assert rows[1]["box"] == [0.0, 0.0, 151.0, 100.0]
    assert explain("pictures/a.png", model="shop:poisoned", overwrite=True).failed == 1


def test_inputs_may_have_different_sizes() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.BLACK)
    disk.write_picture(Path("pictures/c.png"), disk.CAT)
    explain(model="shop:any_size")
    rows = disk.read_rows(Path("out"))
    assert [row["path"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert [(row["height"], row["width"]) for row in rows] == [(15, 24), (10, 14), (15, 24)]
    assert np.abs(rows[0]["heatmap"] - rows[2]["heatmap"]).max() < 2e-3


def test_one_class_for_all() -> None:
    disk.write_pictures(Path("pictures"))
    explain(targets="1")
    for row in disk.read_rows(Path("out")):
        assert (row["target"], row["target_name"]) == (1, "cup")
    row = next(row for row in disk.read_rows(Path("out")) if row["path"] == "top.png")
    heatmap, _, score = direct("pictures/top.png", row)
    assert np.abs(row["heatmap"] - heatmap).max() < 2e-3
    assert row["score"] == pytest.approx(score, abs=1e-5)


def test_the_best_classes_have_a_row_each() -> None:
    disk.write_pictures(Path("pictures"))
    explain(targets="top:2", methods=("grad-cam", "layer-cam"))
    rows = disk.read_rows(Path("out"))
    assert len(rows) == 7 * 2 * 2
    paths = {entry.key: entry.path for entry in index_pictures("pictures", "out")}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["path"], first["method"]) == (second["path"], second["method"])
        probabilities = load_model("shop:net").model(_image(paths[first["path"]])).softmax(1)[0]
        values, classes = probabilities.topk(2)
        assert [first["target"], second["target"]] == classes.tolist()
        assert [first["score"], second["score"]] == pytest.approx(values.tolist(), abs=1e-5)
        for row in (first, second):
            assert np.abs(row["heatmap"] - direct(paths[row["path"]], row)[0]).max() < 2e-3
    assert Path("out/overlays/top.png.grad-cam.jpg").exists()
    assert Path("out/overlays/top.png.grad-cam.2.jpg").exists()


def test_labels_are_the_folders() -> None:
    disk.write_pictures(Path("pictures"))
    summary = explain(targets="label")
    rows = {row["path"]: row for row in disk.read_rows(Path("out"))}
    assert (rows["cat/a.png"]["target"], rows["cup/a.png"]["target"]) == (0, 1)
    assert (rows["cat/a.png"]["label"], rows["cat/a.png"]["target_name"]) == ("cat", "cat")
    # The folder inside names no class, so the one around it counts.
    assert (rows["cat/deeper/a.png"]["label"], rows["cat/deeper/a.png"]["target"]) == ("cat", 0)
    assert summary.failed == 1
    assert rows["top.png"]["error"].startswith("UnknownNameError: the picture has no label")


def test_class_names_from_a_file() -> None:
    disk.write_picture(Path("pictures/two/a.png"), disk.CAT)
    Path("names.txt").write_text("one\ntwo\ntwo\n")
    assert explain(targets="label", class_names=Path("names.txt"), model="shop:nameless").failed == 1
    assert "is the name of 2 classes" in disk.read_rows(Path("out"))[0]["error"]
    Path("names.txt").write_text("one\ntwo\nthree\n")
    explain(targets="label", class_names=Path("names.txt"), model="shop:nameless", overwrite=True)
    assert disk.read_rows(Path("out"))[0]["target"] == 1


def test_a_model_with_one_output_has_the_sigmoid_as_probability() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain(model="shop:one_logit")
    [row] = disk.read_rows(Path("out"))
    logit = load_model("shop:one_logit").model(_image("pictures/a.png"))
    assert row["target"] == 0
    assert row["score"] == pytest.approx(float(logit.sigmoid().detach()), abs=1e-5)


def test_several_layers_are_stored_fused_at_the_finest_resolution() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain(layers=("stage1", "stage2"))
    [row] = disk.read_rows(Path("out"))
    loaded = load_model("shop:net")
    heatmap = METHODS["grad-cam"](loaded.model, ["stage1", "stage2"])(_image("pictures/a.png"))[0].numpy()
    assert (row["layer"], row["heatmap"].shape) == ("stage1+stage2", (15, 20))
    enlarged = np.asarray(
        Image.fromarray(row["heatmap"].astype(np.float32)).resize((64, 48), Image.Resampling.BILINEAR)
    )
    assert np.abs(enlarged - heatmap).mean() < 0.03


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(dtype: str) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain(dtype=dtype, targets="0")
    [row] = disk.read_rows(Path("out"))
    heatmap, _, score = direct("pictures/a.png", row)
    assert np.abs(row["heatmap"] - heatmap).max() < 0.1
    assert row["score"] == pytest.approx(score, abs=0.02)
    assert json.loads(Path("out/run.json").read_text())["dtype"] == dtype


def test_settings_of_cudnn_are_the_users_but_for_its_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    for setting, value in (("allow_tf32", False), ("deterministic", True), ("benchmark", False)):
        monkeypatch.setattr(torch.backends.cudnn, setting, value)
    with Explainer.ready(SimpleNamespace(device=torch.device("cuda"))):  # type: ignore[arg-type]
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark

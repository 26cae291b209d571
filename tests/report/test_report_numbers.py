"""What the page about a run says, beside what is known of the run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest

from gradcam_kit.errors import OptionError
from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest, run
from gradcam_kit.jobs.storage.rows import SCHEMA, Row
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.report import collect as collecting
from gradcam_kit.report import maps, write_report
from gradcam_kit.report.collect import Collected, collect
from gradcam_kit.report.figures import Means

NAMES = ["cat", "cup", "7"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def row_of(path: str, label: str | None, predicted: int, heatmap: Any, **others: Any) -> Row:
    """A row as a run writes it."""
    stored, truth = np.asarray(heatmap, "<f2"), NAMES.index(label) if label in NAMES else None
    known = {
        "path": path,
        "status": "ok",
        "method": "grad-cam",
        "layer": "stage2",
        "rank": 0,
        "target": predicted,
        "target_name": NAMES[predicted],
        "score": 0.75,
        "label": label,
        "predicted": predicted,
        "predicted_name": NAMES[predicted],
        "correct": None if truth is None else truth == predicted,
        "top_targets": [predicted],
        "top_names": [NAMES[predicted]],
        "top_scores": [0.75],
        "heatmap": stored.tobytes(),
        "height": stored.shape[0],
        "width": stored.shape[1],
        "is_empty": not stored.any(),
        "box": [0.0, 0.0, 4.0, 4.0],
        "picture_height": 4,
        "picture_width": 4,
    }
    return {**dict.fromkeys(SCHEMA.names), **known, **others}


def failed_row(path: str, error: str = "PictureError: cannot read the picture: the file is empty") -> Row:
    return {**dict.fromkeys(SCHEMA.names), "path": path, "status": "error", "error": error, "method": "grad-cam"}


def collected(*shards: list[Row], planned: int | None = None) -> tuple[Collected, dict[str, bytes]]:
    """What the page gets of shards of rows, and the files beside it."""
    store, files = Store.at("run"), {}
    for number, rows in enumerate(shards):
        store.write_shard(number, rows, {row["path"]: row["path"].encode() for row in rows if row["status"] == "ok"})
    pictures = planned or sum(len({row["path"] for row in rows}) for rows in shards)
    manifest = {"pictures": pictures, "shard_size": len(shards[0]), "class_names": NAMES, "overlays": 0}
    return collect(store, manifest, files.__setitem__), files


def unpacked(values: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values), np.uint8)


def test_means_of_classes_and_of_confusions_are_those_of_their_pictures() -> None:
    rows = [
        row_of("a", "cat", 0, [[1, 0], [0, 0]]),
        row_of("b", "cup", 0, [[0, 1], [0, 0]]),
        row_of("c", "cup", 0, [[0, 0.5], [0.25, 0]]),
        row_of("d", "cup", 1, [[0, 0], [0, 1]]),
        row_of("e", "dog", 0, [[0, 0], [0, 0]]),  # no class of the model: in the mean of cat, in no pair
        row_of("b2", "cup", 0, [[1, 1], [1, 1]], rank=1),  # not what was predicted
    ]
    means = Means()
    for row in rows:
        means.add([row], row["label"])
    corners = np.ix_([0, -1], [0, -1])  # enlarged to 16 x 16, the corners keep their values
    expected = {
        ("cat",): [[1 / 4, 1.5 / 4], [0.25 / 4, 0]],
        ("cup",): [[0, 0], [0, 1]],
        ("cup", "cat"): [[0, 0.75], [0.125, 0]],
    }
    for key, values in expected.items():
        mean = means.mean("grad-cam", *key)
        assert mean.shape == (16, 16)
        assert mean[corners] == pytest.approx(np.array(values))
    assert means.mean("grad-cam", "cat", "cup") is None
    assert means.mean("layer-cam", "cat") is None

    page, _ = collected(rows[:5])
    assert [(pair["label"], pair["predicted"], pair["count"]) for pair in page.pairs] == [("cup", "cat", 2)]
    shown = unpacked(page.pairs[0]["maps"]["grad-cam"]).reshape(16, 16)
    assert shown[corners].tolist() == [[0, 255], [round(255 / 6), 0]]  # its largest value is the hottest
    assert [(one["name"], one["count"], one["labeled"], one["right"]) for one in page.classes] == [
        ("cat", 4, 1, 1),
        ("cup", 1, 3, 1),
    ]
    assert page.figures.accuracy == 2 / 4
    assert page.figures.empty == 1


def test_methods_are_not_mixed_in_means() -> None:
    rows = [row_of("a", "cup", 0, [[1]]), row_of("a", "cup", 0, [[0.5]], method="layer-cam")]
    means = Means()
    means.add(rows, "cup")
    assert means.mean("grad-cam", "cup", "cat") == pytest.approx(np.ones((16, 16)))
    assert means.mean("layer-cam", "cup", "cat") == pytest.approx(np.full((16, 16), 0.5))


def test_labels_that_are_numbers_are_named_and_classes_that_are_never_predicted_are_there() -> None:
    rows = [
        row_of("a", "1", 0, [[1]], correct=False),
        row_of("b", "0", 0, [[1]], correct=True),
        row_of("c", "7", 0, [[1]]),  # a class of the model is called so
    ]
    page, _ = collected(rows)
    assert [(pair["label"], pair["predicted"]) for pair in page.pairs] == [("cup", "cat"), ("7", "cat")]
    assert [(one["name"], one["count"], one["labeled"]) for one in page.classes] == [
        ("cat", 3, 1),
        ("cup", 0, 1),
        ("7", 0, 1),
    ]
    assert [one["label"] for one in page.pictures] == ["cup", "cat", "7"]


def test_of_many_pictures_a_sample_is_shown_and_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_PICTURES", 10)
    monkeypatch.setattr(collecting, "_INLINE", 10)
    broken = {3, 4, 19, 60, 61, 99}
    shards = [
        [
            failed_row(f"{i:03}") if i in broken else row_of(f"{i:03}", "cat", i % 2, [[1]])
            for i in range(start, start + 20)
        ]
        for start in range(0, 100, 20)
    ]
    page, files = collected(*shards)
    sample = set(range(9, 100, 10))
    assert [int(one["path"]) for one in page.pictures] == sorted(sample | broken)
    assert (page.sampled, page.hidden_failures) == (True, 0)
    assert (page.figures.pictures, page.figures.failed, page.figures.judged) == (100, 6, 94)
    assert page.pairs[0]["count"] == 46  # the odd ones that did not fail
    assert {content.decode() for content in files.values()} == {f"{i:03}" for i in sample - broken}
    assert {one["thumb"] for one in page.pictures if "thumb" in one} == set(files)
    monkeypatch.setattr(collecting, "MOST_FAILURES", 2)
    page, _ = collected(*shards)
    assert len(page.pictures) == 12
    assert page.hidden_failures == 2  # two of the six are in the sample
    assert page.figures.reasons == {"PictureError: cannot read the picture: the file is empty": 6}


def test_a_page_with_many_heatmaps_has_coarser_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = np.zeros((32, 32))
    fine[:16] = 1
    rows = [row_of(str(i), None, 0, fine) for i in range(4)]
    assert {tuple(one["maps"][0]["size"]) for one in collected(rows)[0].pictures} == {(32, 32)}
    monkeypatch.setattr(maps, "_BYTES", 540)
    coarse = collected(rows)[0].pictures[0]["maps"][0]
    assert coarse["size"] == [10, 10]
    assert unpacked(coarse["values"]).reshape(10, 10)[[0, 4, 5, 9], 0].tolist() == [255, 255, 0, 0]
    monkeypatch.setattr(maps, "_BYTES", 1)
    assert collected(rows)[0].pictures[0]["maps"][0]["size"] == [7, 7]


def data_of(page: str) -> dict[str, Any]:
    """What the script of a page gets."""
    found: dict[str, Any] = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    return found


def test_overlays_are_linked_where_they_are() -> None:
    disk.write_pictures(Path("pictures"))
    Path("pictures/zero.jpg").write_text("no picture")
    summary = run_and_report(RunRequest("shop:net", source="pictures", out="out", overlays=3, workers=1))
    pictures = data_of(Path(summary.report).read_text())["pictures"]
    linked = {map_["overlay"] for one in pictures for map_ in one["maps"] if "overlay" in map_}
    assert linked == {str(path.relative_to("out")) for path in Path("out").glob("overlays/**/*.jpg")}
    assert len(linked) == 3


def test_speed_is_that_of_all_the_work() -> None:
    disk.write_pictures(Path("pictures"))
    run(RunRequest("shop:net", source="pictures", out="out", workers=1, overlays=0))
    assert "per second" not in Path(write_report("out")).read_text()
    write_report("out", 6, 2.0)
    write_report("out", 4, 3.0)
    assert "pictures per second</dt><dd>2</dd>" in Path(write_report("out")).read_text()
    run(RunRequest("shop:net", source="pictures", out="out", workers=1, overlays=0, overwrite=True))
    assert "per second" not in Path(write_report("out")).read_text()


@pytest.mark.parametrize("content", ["", "[1", "[1]", "7", '{"a": 1, "b": 2}', "[null, 1]", "\\xff", "[1, 2, 3]"])
def test_a_speed_that_cannot_be_read_is_none(content: str) -> None:
    disk.write_pictures(Path("pictures"))
    run(RunRequest("shop:net", source="pictures", out="out", workers=1, overlays=0))
    Path("out/report").mkdir(exist_ok=True)
    Path("out/report/speed.json").write_text(content)
    assert "per second" not in Path(write_report("out")).read_text()
    write_report("out", 6, 2.0)
    assert "pictures per second</dt><dd>3</dd>" in Path(write_report("out")).read_text()


def test_a_run_that_is_not_finished_says_so() -> None:
    disk.write_pictures(Path("pictures"))
    request = RunRequest("shop:net", source="pictures", out="out", workers=1, overlays=0, shard_size=2)
    run(request)
    Path("out/shards/00001.parquet").unlink()
    page = Path(write_report("out")).read_text()
    assert "The run is not finished: 5 of 7 pictures are done." in page
    thumbnails = [one["thumb"] for one in data_of(page)["pictures"]]
    assert all(one.startswith("data:image/jpeg") for one in thumbnails)


@pytest.mark.parametrize(
    ("targets", "says"),
    [("predicted", "the predicted class"), ("label", "the class of the label"), ("1", "cup"), ("top:2", "the 2 most")],
)
def test_the_page_says_what_is_explained(targets: str, says: str) -> None:
    disk.write_picture(Path("pictures/cat/a.png"), disk.CAT)
    summary = run_and_report(RunRequest("shop:net", source="pictures", out="out", targets=targets, workers=1))
    assert f"grad-cam for {says}" in Path(summary.report).read_text()


def test_what_a_run_left_in_its_folder_is_no_input() -> None:
    disk.write_pictures(Path("pictures"))
    request = RunRequest("shop:net", source="pictures/**/*.p*", out="pictures", workers=1)
    assert run(request).pictures == 6  # one ends in .PNG
    for place in ("report/00000/3.png", "export/png/a.png"):
        disk.write_picture(Path("pictures", place), disk.CAT)
    assert run(request).pictures == 6  # one ends in .PNG


def test_many_pictures_have_their_thumbnails_beside_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    Path("pictures/broken.jpg").write_text("no picture")
    run(RunRequest("shop:net", source="pictures", out="out", workers=1, overlays=0))
    monkeypatch.setattr(collecting, "_INLINE", 2)
    monkeypatch.setattr(collecting, "MOST_PICTURES", 4)
    page = Path(write_report("out"))
    assert "This page shows 5 pictures: an evenly spaced sample plus every failure." in page.read_text()
    assert "<dt>pictures</dt><dd>8</dd>" in page.read_text()
    shown = data_of(page.read_text())["pictures"]
    assert "broken.jpg" in {one["path"] for one in shown}
    thumbnails = {one["thumb"] for one in shown if "thumb" in one}
    assert len(thumbnails) == 4
    for _ in range(2):
        assert {str(path.relative_to("out")) for path in Path("out").glob("report/*/*.jpg")} == thumbnails
        Path("out/report/00000/99.jpg").write_bytes(b"")  # of a page that showed more
        write_report("out")
    monkeypatch.setattr(collecting, "MOST_FAILURES", 0)
    assert "1 failure is not shown" in Path(write_report("out")).read_text()
    with pytest.raises(OptionError, match="holds no run"):
        write_report("pictures")


def test_what_the_template_shows_is_escaped() -> None:
    odd = "<i onclick='1'>{{7*7}}"
    disk.write_picture(Path(odd, "a.png"), disk.CAT)
    Path(odd, "b.png").write_text("no picture")
    page = Path(run_and_report(RunRequest("shop:net", source=odd, out="out", workers=1)).report).read_text()
    assert "<i onclick" not in page
    assert "&lt;i onclick=&#39;1&#39;&gt;{{7*7}}" in page

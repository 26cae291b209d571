"""What a run reads: tables, folders with other files, long plans, remote storage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import disk
import numpy as np
import pytest
from runs import explain, notes

from gradcam_kit.errors import InputError
from gradcam_kit.jobs import load_run
from gradcam_kit.jobs.engines.local import has_thumbnail
from gradcam_kit.jobs.sources import plan as plans
from gradcam_kit.jobs.sources.index import Entry, find_pictures, index_pictures
from gradcam_kit.jobs.sources.walk import Skipped


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def test_tables_give_paths_and_labels() -> None:
    disk.write_pictures(Path("pictures"))
    Path("pictures/list.csv").write_text(
        "label,path,more\ncup,top.png,1\n0,cat/a.png,2\nmouse,cup/a.png,3\n,gone.png,\n"
    )
    explain("pictures/list.csv", methods=("layer-cam",))
    rows = {row["path"]: row for row in disk.read_rows(Path("out"))}
    assert {key: row["label"] for key, row in rows.items()} == {
        "top.png": "cup",
        "cat/a.png": "0",
        "cup/a.png": "mouse",
        "gone.png": None,
    }
    assert rows["top.png"]["correct"] == (rows["top.png"]["predicted_name"] == "cup")
    assert rows["cat/a.png"]["correct"] == (rows["cat/a.png"]["predicted"] == 0)
    assert rows["cup/a.png"]["correct"] is None
    assert rows["gone.png"]["error"] == "PictureError: cannot read the picture: No such file or directory"
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["top.png", "top.png"], "label": [1, 2]}), "pictures/list.parquet")
    left_out = Skipped()
    assert [(entry.key, entry.label) for entry in find_pictures("pictures/list.parquet", "out", left_out)] == [
        ("top.png", "1"),
        ("top.png", "2"),
    ]
    said = notes()
    assert explain("pictures/list.parquet", out="second", console=said).pictures == 1
    assert "left out repetitions of pictures: 1" in said.export_text()
    Path("bad.csv").write_text("file\na.png\n")
    with pytest.raises(InputError, match=r"the table 'bad.csv' has no column 'path'; its columns are file"):
        explain("bad.csv", out="third")


def test_files_that_are_not_named_like_pictures_are_counted() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    for name in ("b.heic", "c.heic", "d.dcm", "README"):
        Path("pictures", name).write_text("?")
    said = notes()
    explain(console=said)
    [line] = [line for line in said.export_text().splitlines() if "skipped" in line]
    assert line.startswith("note: skipped 4 files without an image extension: 2 .heic, 1 ")
    assert "1 .dcm" in line
    assert "1 without extension" in line
    Path("pictures/a.png").unlink()
    with pytest.raises(InputError, match=r"holds no pictures; skipped 4 files"):
        explain()


def test_the_plan_is_sorted_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{random.Random(i).random()}\n{i}.png" for i in range(50)]
    Path("pictures").mkdir()
    for name in names:
        Path("pictures", name).touch()
    monkeypatch.setattr(plans, "_SORTED_AT_ONCE", 7)
    plan = plans.make_plan("pictures", "out", 8)
    assert (plan.pictures, plan.shards) == (50, 7)
    assert [entry.key for entry in plan.entries()] == sorted(names)
    assert list(plan.shard(6).positions) == [48, 49]
    assert plan.shard(3).entries == index_pictures("pictures", "out")[24:32]
    plan.close()
    for entry in (Entry('"\n\\\x00', "caf\udce9\u2028", None), Entry("", "/", "\U0001f600 \t")):
        line = plans._line(entry)
        assert (line, plans._read(line)) == (json.dumps(entry).encode() + b"\n", entry)


@pytest.mark.parametrize(("pictures", "wanted"), [(1, 0), (5, 9), (1000, 10), (10, 3)])
def test_thumbnails_are_spread_evenly(pictures: int, wanted: int) -> None:
    marked = [has_thumbnail(position, pictures, wanted) for position in range(pictures)]
    assert sum(marked) == min(wanted, pictures)
    gaps = np.diff([-1, *np.flatnonzero(marked)])
    assert wanted == 0 or gaps.max() - gaps.min() <= 1


def test_pictures_and_results_may_lie_on_remote_storage() -> None:
    import fsspec

    disk.write_pictures(Path("pictures"))
    system = fsspec.filesystem("memory")
    for key in ("cat/a.png", "top.png", "notes.txt"):
        system.pipe_file(f"/store/pictures/{key}", Path("pictures", key).read_bytes() if "png" in key else b"?")
    summary = explain("memory://store/pictures", out="memory://store/run")
    assert (summary.pictures, summary.problems, summary.missing) == (2, (), 0)
    assert explain("memory://store/pictures", out="memory://store/run").before == 2
    run_ = load_run("memory://store/run")
    assert [row["path"] for row in run_] == ["cat/a.png", "top.png"]
    assert run_.overlay(1).shape == disk.PERSON.shape
    assert system.exists("/store/run/overlays/top.png.grad-cam.jpg")
    system.rm("/store", recursive=True)

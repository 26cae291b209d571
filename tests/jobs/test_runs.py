"""Runs that stop and go on: whatever happens in between, the result is that of an undisturbed run."""

from __future__ import annotations

import errno
import inspect
import io
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest
import torch
from rich.console import Console

from gradcam_kit.capture.rerun import rescore as scoring
from gradcam_kit.errors import InputError, OptionError, UnknownNameError
from gradcam_kit.jobs import RunRequest, RunSummary, load_run, run
from gradcam_kit.jobs.engines.local import has_thumbnail
from gradcam_kit.jobs.sources import plan as plans
from gradcam_kit.jobs.sources.index import Entry, find_pictures, index_pictures
from gradcam_kit.jobs.sources.walk import Skipped
from gradcam_kit.jobs.storage.folders import LocalFolder
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.explainer import Batch, Explained, Explainer

local = sys.modules["gradcam_kit.jobs.run"]  # the package has a function of this name
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def explain(source: str = "pictures", out: str = "out", console: Console | None = None, **options: Any) -> RunSummary:
    defaults = {"model": "shop:net", "workers": 2, "shard_size": 2, "report": False}
    return run(RunRequest(**{**defaults, "source": source, "out": out, **options}), console)


def content(out: str) -> dict[str, bytes]:
    """All files of a run, by name."""
    root = Path(out)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def notes() -> Console:
    return Console(record=True, file=io.StringIO(), width=500)


def test_a_shard_that_is_gone_is_written_again_and_nothing_else() -> None:
    disk.write_pictures(Path("pictures"))
    explain()
    before, times = content("out"), {path: path.stat().st_mtime_ns for path in Path("out/shards").iterdir()}
    Path("out/shards/00001.parquet").unlink()
    summary = explain()
    assert (summary.pictures, summary.before, summary.failed, summary.missing) == (7, 5, 0, 0)
    assert content("out") == before
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == ["00001.parquet"]


def test_the_parts_of_a_run_make_the_whole() -> None:
    disk.write_pictures(Path("pictures"))
    explain(out="whole")
    for part in (2, 0, 1):
        summary = explain(part=(part, 3), workers=1)
        assert (summary.pictures, summary.missing) == {2: (2, 3), 0: (3, 1), 1: (2, 0)}[part]
    assert content("out") == content("whole")


@pytest.mark.parametrize("out", ["out", "memory://two/out"])
def test_of_two_parts_that_begin_at_once_only_those_that_ask_the_same_go_on(out: str) -> None:
    for i in range(40):
        start = threading.Barrier(3)

        def begin(targets: str, i: int = i, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                Store.at(f"{out}/{i}").begin({"targets": targets, "padding": "x" * 10_000}, False)
            except OptionError as error:
                return str(error)
            return targets

        with ThreadPoolExecutor(3) as threads:
            said = list(threads.map(begin, ["1", "2", "2"]))
        manifest = Store.at(f"{out}/{i}").manifest()
        assert manifest is not None
        refused = [text for text in said if text != manifest["targets"]]
        assert said.count(manifest["targets"]) == {"1": 1, "2": 2}[manifest["targets"]]
        assert all("different targets" in text for text in refused)
    if out == "out":
        assert all(os.listdir(f"{out}/{i}") == ["run.json"] for i in range(40))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": ("hires-cam",)}, 'different methods: "grad-cam" there, "hires-cam" now'),
        ({"targets": "1"}, 'different targets: "predicted" there, "1" now'),
        ({"shard_size": 3}, "different shard_size: 2 there, 3 now"),
        ({"dtype": "bfloat16"}, 'different dtype: "float32" there, "bfloat16" now'),
        ({"layers": ("stage1",)}, 'different layers.grad-cam: ["stage2"] there, ["stage1"] now'),
        ({"overlays": 0}, "different overlays: null there, 0 now"),
        ({"model": "shop:nameless"}, "different model"),
        ({"mean": (0.5, 0.5, 0.5)}, "different transform.mean"),
    ],
)
def test_other_options_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain()
    before = content("out")
    with pytest.raises(OptionError) as caught:
        explain(**options)
    assert says in str(caught.value)
    assert content("out") == before
    assert explain(batch_size=7, workers=1).before == 1  # what changes no row may change


def test_other_pictures_are_refused_and_overwritten_when_asked() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain()
    disk.write_picture(Path("pictures/b.png"), disk.CAT)
    with pytest.raises(OptionError, match=r"different pictures: 1 there, 2 now"):
        explain()
    Path("pictures/a.png").rename("pictures/c.png")
    Path("pictures/b.png").unlink()
    with pytest.raises(OptionError, match=r"different index_sha256"):
        explain()
    Path("out/mine.txt").write_text("mine")
    explain(overwrite=True, methods=("layer-cam",))
    assert sorted(content("out")) == [
        *("mine.txt", "overlays/c.png.layer-cam.jpg", "run.json", "shards/00000.parquet", "thumbnails/00000.parquet")
    ]
    Path("out/run.json").unlink()
    with pytest.raises(OptionError, match=r"holds shards without a run.json"):
        explain()
    with pytest.raises(OptionError, match="the other parts"):
        explain(overwrite=True, part=(0, 2))


def test_a_wrong_request_keeps_the_run_that_it_would_overwrite() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain()
    before = content("out")
    with pytest.raises(UnknownNameError, match="no method 'grad_cam'; did you mean 'grad-cam'"):
        explain(methods=("grad_cam",), overwrite=True)
    with pytest.raises(InputError, match="cannot take these pictures"):
        explain(model="shop:never", layers=("stage2",), overwrite=True)
    assert content("out") == before


def test_only_what_failed_is_tried_again() -> None:
    disk.write_pictures(Path("pictures"))
    explain(out="whole", overlays=4)
    hidden = Path("pictures/cat/a.png").read_bytes()
    Path("pictures/cat/a.png").write_bytes(hidden[:100])
    assert explain(overlays=4).failed == 1
    times = {path.name: path.stat().st_mtime_ns for path in Path("out/shards").iterdir()}
    assert (explain(overlays=4).failed, explain(overlays=4).before) == (1, 7)
    Path("pictures/cat/a.png").write_bytes(hidden)
    summary = explain(retry_failed=True, overlays=4)
    assert (summary.failed, summary.before, summary.pictures) == (0, 5, 7)
    changed = {path.name for path in Path("out/shards").iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"00000.parquet"}
    ours, theirs = disk.read_rows(Path("out")), disk.read_rows(Path("whole"))
    assert [row["path"] for row in ours] == [row["path"] for row in theirs]
    assert all(np.abs(a["heatmap"] - b["heatmap"]).max() < 2e-3 for a, b in zip(ours, theirs, strict=True))
    assert sorted(content("out")) == sorted(content("whole"))


def test_too_little_memory_halves_the_batch_and_says_so_once() -> None:
    disk.write_pictures(Path("pictures"))
    said = notes()
    assert explain(model="shop:small", shard_size=10, batch_size=7, console=said).failed == 0
    text = said.export_text()
    assert text.count("too small") == 1
    assert "going on with batches of 3" in text
    explain(out="other", shard_size=10)
    for ours, theirs in zip(disk.read_rows(Path("out")), disk.read_rows(Path("other")), strict=True):
        assert np.abs(ours["heatmap"] - theirs["heatmap"]).max() < 2e-3


def test_on_a_cpu_no_pass_has_more_pictures_than_are_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    monkeypatch.setattr(scoring, "_NEAR", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    said = notes()
    assert explain(model="shop:small", batch_size=7, console=said).failed == 0  # it takes three
    assert "too small" not in said.export_text()


def test_a_full_disk_leaves_what_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    explain(out="whole", overlays=0)
    with monkeypatch.context() as patch:
        disk.fill_up(patch)
        with pytest.raises(OptionError, match=r"'out/shards/00002.parquet' cannot be written: No space left on device"):
            explain(overlays=0)
    assert {"00000.parquet", "00001.parquet"} <= set(os.listdir("out/shards")) <= set(os.listdir("whole/shards"))
    assert not Path("out/shards/00002.parquet").exists()
    assert explain(overlays=0).before >= 4
    assert content("out") == content("whole")


def test_a_disk_that_is_full_for_overlays_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))

    def full(self: LocalFolder, name: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFolder, "put", full)
    with pytest.raises(OptionError, match=r"'out' cannot be written: No space left on device"):
        explain()
    assert not Path("out/shards").exists()


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
    assert "left out 1 repetitions" in said.export_text()
    Path("bad.csv").write_text("file\na.png\n")
    with pytest.raises(InputError, match=r"the table 'bad.csv' has no column 'path'; its columns are file"):
        explain("bad.csv", out="third")


def test_files_that_are_not_named_like_pictures_are_counted() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    for name in ("b.heic", "c.heic", "d.dcm", "README"):
        Path("pictures", name).write_text("?")
    said = notes()
    explain(console=said)
    [line] = [line for line in said.export_text().splitlines() if "left out" in line]
    assert line.startswith("note: left out 4 files that are not named like pictures: 2 .heic, 1 ")
    assert "1 .dcm" in line
    assert "1 without ending" in line
    Path("pictures/a.png").unlink()
    with pytest.raises(InputError, match=r"holds no pictures; left out 4 files"):
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


def test_methods_of_ones_own() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain(methods=("shop:Positive", "grad-cam"))
    assert [row["method"] for row in disk.read_rows(Path("out"))] == ["Positive", "grad-cam"]
    for method, says in [
        ("shop:Negative", "module 'shop' has no method 'Negative'; did you mean"),
        ("shop:Net", "shop:Net is not a method; expected a class derived from gradcam_kit.BaseCAM"),
        ("nowhere:X", "'nowhere:X' names no method: no module 'nowhere'"),
    ]:
        with pytest.raises((UnknownNameError, InputError)) as caught:
            explain(methods=(method,), out="other")
        assert says in str(caught.value)


def test_several_devices_write_what_one_does() -> None:
    disk.write_pictures(Path("pictures"))
    disk.break_pictures(Path("pictures"))
    explain(out="one", workers=1)
    assert explain(device="cpu,cpu").failed == 4
    assert content("out") == content("one")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at each
def test_compiled_modules_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    compiled, graphs = [], []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_eagerly(function: Any) -> Any:
        compiled.append(type(inspect.unwrap(function).__closure__[0].cell_contents).__name__)
        return compile_function(function, backend=backend)

    compile_function = torch.compile
    explain(out="plain")
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    explain(compile=True)
    assert compiled == ["Conv2d", "Linear"]  # not stage2, which is explained
    assert len(graphs) >= 2
    for ours, theirs in zip(disk.read_rows(Path("out")), disk.read_rows(Path("plain")), strict=True):
        assert np.abs(ours["heatmap"] - theirs["heatmap"]).max() < 2e-3


@pytest.mark.parametrize("retry", [False, True])
def test_an_interrupted_run_counts_what_it_has_written(retry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    broken = disk.break_pictures(Path("pictures"))
    if retry:
        explain(batch_size=1)
        Path("out/shards/00005.parquet").unlink()
    calls = []

    def explained(self: Explainer, batch: Batch) -> Iterator[Explained]:
        calls.append(batch)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(self, batch)

    whole = Explainer.explain
    with monkeypatch.context() as patch:
        patch.setattr(Explainer, "explain", explained)
        summary = explain(batch_size=1, retry_failed=retry)
    there = disk.read_rows(Path("out"))
    assert 2 <= len(there) < 11  # a shard for certain; the second may still wait to be written
    assert (summary.interrupted, summary.pictures, summary.left) == (True, len(there), 11 - len(there))
    assert summary.failed == len({row["path"] for row in there} & set(broken))
    assert summary.missing == 6 - len(list(Path("out/shards").iterdir()))
    assert explain().left == 0


def test_what_an_end_finds_is_read_only_as_far_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        Path("pictures").mkdir(exist_ok=True)
        Path(f"pictures/{name}.png").write_text("no picture")
    explain(shard_size=1)
    opened: list[str] = []
    whole = LocalFolder.open
    monkeypatch.setattr(LocalFolder, "open", lambda self, name: opened.append(name) or whole(self, name))
    monkeypatch.setattr(local, "SHOWN", 2)
    tally = local._found(Store.at("out"), range(6))
    assert (tally.pictures, tally.failed, len(tally.problems)) == (6, 6, 2)
    assert sorted(opened[:6]) == [f"shards/{i:05}.parquet" for i in range(6)]
    assert opened[6:] == ["shards/00000.parquet", "shards/00001.parquet"]


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

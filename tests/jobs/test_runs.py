"""Runs that stop and go on: whatever happens in between, the result is that of an undisturbed run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest
from runs import content, explain

from gradcam_kit.errors import InputError, OptionError, UnknownNameError
from gradcam_kit.jobs.storage.folders import LocalFolder
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.explainer import Batch, Explained, Explainer

local = sys.modules["gradcam_kit.jobs.run"]  # the package has a function of this name
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


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
        ({"methods": ("hires-cam",)}, 'different methods: "grad-cam" before, "hires-cam" now'),
        ({"targets": "1"}, 'different targets: "predicted" before, "1" now'),
        ({"shard_size": 3}, "different shard_size: 2 before, 3 now"),
        ({"dtype": "bfloat16"}, 'different dtype: "float32" before, "bfloat16" now'),
        ({"layers": ("stage1",)}, 'different layers.grad-cam: ["stage2"] before, ["stage1"] now'),
        ({"overlays": 0}, "different overlays: null before, 0 now"),
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
    with pytest.raises(OptionError, match=r"different pictures: 1 before, 2 now"):
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
    with pytest.raises(OptionError, match="of other parts"):
        explain(overwrite=True, part=(0, 2))


def test_a_wrong_request_keeps_the_run_that_it_would_overwrite() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain()
    before = content("out")
    with pytest.raises(UnknownNameError, match=r"no method 'grad_cam'; .*; did you mean 'grad-cam'"):
        explain(methods=("grad_cam",), overwrite=True)
    with pytest.raises(InputError, match="does not accept these pictures"):
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


def test_methods_of_ones_own() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain(methods=("shop:Positive", "grad-cam"))
    assert [row["method"] for row in disk.read_rows(Path("out"))] == ["Positive", "grad-cam"]
    for method, says in [
        ("shop:Negative", "module 'shop' has no method 'Negative'; did you mean"),
        ("shop:Net", "shop:Net is not a method; expected a class derived from gradcam_kit.BaseCAM"),
        ("nowhere:X", "'nowhere:X' is not a method: there is no module 'nowhere'"),
    ]:
        with pytest.raises((UnknownNameError, InputError)) as caught:
            explain(methods=(method,), out="other")
        assert says in str(caught.value)


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

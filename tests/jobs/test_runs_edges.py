"""Rare circumstances of runs: odd names, single bad pictures, damaged files, workers that end."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable
from functools import partial, partialmethod
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Queue
from threading import Timer
from typing import Any

import disk
import pytest

from gradcam_kit.errors import CaptureError, ClassIndexError, InputError, OptionError
from gradcam_kit.jobs import RunRequest, RunSummary, load_run, run
from gradcam_kit.jobs.engines.devices import _next_answer
from gradcam_kit.jobs.sources.index import find_pictures, index_pictures
from gradcam_kit.jobs.sources.walk import Skipped, key_of
from gradcam_kit.jobs.storage import store
from gradcam_kit.jobs.storage.folders import LocalFolder
from gradcam_kit.jobs.storage.store import Store


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def explain(source: str = "pictures", **options: Any) -> RunSummary:
    defaults = {"model": "shop:net", "out": "out", "workers": 1, "shard_size": 2, "report": False}
    return run(RunRequest(**{**defaults, "source": source, **options}))


class _Ended(BaseProcess):
    """A process with a given exit status; None = still alive."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    @property
    def exitcode(self) -> int | None:
        return self.status

    def is_alive(self) -> bool:
        return self.status is None


def test_a_device_that_has_nothing_left_to_do_is_not_dead() -> None:
    answers: Queue[str] = Queue()
    late = Timer(0.8, answers.put, ["done"])
    late.start()
    assert _next_answer(answers, [_Ended(0), _Ended(None)]) == "done"
    late.join()


@pytest.mark.parametrize("statuses", [(0, 0), (None, -9)])
def test_answers_that_can_never_come_are_not_waited_for(statuses: tuple[int | None, ...]) -> None:
    with pytest.raises(CaptureError, match="died"):
        _next_answer(Queue(), [_Ended(status) for status in statuses])


def test_a_wrong_request_on_several_devices_keeps_the_run_that_it_would_overwrite() -> None:
    disk.write_pictures(Path("pictures"))
    explain()
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with pytest.raises(ClassIndexError, match="99"):
        explain(device="cpu,cpu", targets="99", overwrite=True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"layers": ("stage2",), "batch_size": 1}])
def test_a_first_picture_that_the_model_cannot_take_is_no_wrong_request(options: dict[str, Any]) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.BLACK)
    disk.write_picture(Path("pictures/b.png"), disk.CAT)
    summary = explain(model="shop:picky", **options)
    assert (summary.pictures, summary.failed) == (2, 1)


def test_a_picture_that_fails_again_does_not_end_the_run() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.BLACK)
    options = {"model": "shop:picky", "layers": ("stage2",), "shard_size": 1}
    assert explain(**options).failed == 1
    assert explain(**options, retry_failed=True).failed == 1
    Path("out/shards/00001.parquet").unlink()
    assert explain(**options).failed == 1


def test_no_two_names_share_a_key_and_each_comes_back() -> None:
    names = [b"\\xff.png", b"\xff.png", b"\\xzz.png", b"\\\xff.png", b"\\x5cxff.png", b"a\\b.png"]
    os.mkdir("pictures")
    for name in names:
        disk.write_picture(Path("pictures/c.png"), disk.CAT)
        os.rename("pictures/c.png", os.path.join(b"pictures", name))
    entries = index_pictures("pictures", "out")
    assert len({entry.key for entry in entries}) == len(names)
    assert explain().pictures == len(names)
    found = load_run("out")
    assert {entry.path: found.path_of(entry.key) for entry in entries} == {entry.path: entry.path for entry in entries}
    assert len(list(Path("out/overlays").iterdir())) == len(names)


def test_overlays_stay_in_the_folder_of_their_run() -> None:
    keys = ["../../a.png", "/etc/a.png", "./a.png", "b//a.png", "b/../a.png", "b/./a.png", "a.png", "b/a.png", ".."]
    out = Store.at("out")
    names = [out.overlay_name(key, "grad-cam") for key in keys]
    assert len({os.path.realpath(out.place(name)) for name in names}) == len(keys)
    root = os.path.realpath("out/overlays")
    assert all(os.path.realpath(out.place(name)).startswith(root + "/") for name in names)
    for name in ("../a", "a/../../b", "/a"):
        with pytest.raises(AssertionError, match="leads out"):
            LocalFolder("out").path(name)


PATTERNS = [
    *("pictures/**", "pictures/**/*", "pictures/**/*.png", "pictures/**/a.*", "pictures/**/**/a.png", "pictures/*.png"),
    *("pictures/*/../cat/*.png", "pictures/*//a.png", "pictures/*/./a.png", "pictures/*/deeper/../../cup/*.png"),
    *("pictures/**/../*.png", "pictures/*/../../*/*.png", "pictures/dog*/cat/../../*/a.png", "pictures/*/.", "*/*/.."),
    *("pictures/*/link/a.png", "pictures/*/link/../*.png", "pictures/*/deeper//./a.png", "pictures/*/nothing/../*.png"),
    *("pictures/*/*", "pictures/c*/**/a.p?g", "pictures/cat/*", "pictures/[!c]*/*", "pictures/**/deeper/*", "*/*.png"),
    *(
        "pictures/*/",
        "**/a.png",
        "nothing/**/a.png",
        "pictures/top.png/*",
        "pictures/.hid*/*.png",
        "./pictures/*/a.png",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_glob_names_what_it_names_elsewhere(pattern: str) -> None:
    disk.write_pictures(Path("pictures"))
    disk.write_picture(Path("pictures/.hidden/x.png"), disk.CAT)
    disk.write_picture(Path("pictures/dog.png/cat/deeper/a.png"), disk.CAT)
    disk.write_picture(Path("far/away/a.png"), disk.CAT)
    disk.write_picture(Path("far/b.png"), disk.CAT)
    if "link" in pattern:
        os.symlink(os.path.abspath("far/away"), "pictures/cup/link")
    entries = list(find_pictures(pattern, "out", Skipped()))
    found = {os.path.realpath(entry.path) for entry in entries}
    files = {os.path.realpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    assert found == {path for path in files if path.lower().endswith(".png")}
    assert len(entries) == len(found)
    root = os.path.abspath(pattern.partition("*")[0].partition("[")[0].rpartition("/")[0])
    assert all(key_of(os.path.relpath(one.path, root)) == one.key for one in entries if ".." not in one.key)


@pytest.mark.parametrize("pattern", ["home/*/pics/*.png", "home/*/*/*.png", "home/**/*.png", "home"])
def test_a_folder_that_may_not_be_read_is_left_out(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        disk.write_picture(Path(f"home/{name}/pics/{name}.png"), disk.CAT)

    def refused(whole: Callable[[Any], Any], path: Any) -> Any:  # by code, because an administrator may read all
        if "home/b" in os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", partial(refused, os.scandir))
    monkeypatch.setattr(Path, "lstat", partialmethod(lambda self, whole: refused(whole, self), Path.lstat))
    left_out = Skipped()
    assert sorted(entry.key[0] for entry in find_pictures(pattern, "out", left_out)) == ["a", "c"]
    assert left_out.lines() == ["left out folders without read permission: b"]
    with pytest.raises(InputError, match="home/b' cannot be listed: Permission denied"):
        list(find_pictures("home/b", "out", Skipped()))


@pytest.mark.parametrize("pattern", ["pictures", "pictures/**/*.png", "pictures/**/**/*", "pictures/*/*/*/*.png"])
def test_links_around_in_a_circle_are_not_followed(pattern: str) -> None:
    disk.write_picture(Path("pictures/one/two/three/a.png"), disk.CAT)
    os.symlink("..", "pictures/one/up")
    os.symlink("../..", "pictures/one/two/up")
    os.symlink(os.path.abspath("pictures"), "pictures/one/two/three/top")
    os.symlink("one", "pictures/other")  # another name of a folder, and no circle
    keys = [entry.key for entry in find_pictures(pattern, "out", Skipped())]
    assert sorted(keys) == ["one/two/three/a.png", "other/two/three/a.png"]


def test_a_path_that_goes_up_behind_a_link_is_that_of_the_file_system() -> None:
    disk.write_picture(Path("far/away/a.png"), disk.CAT)
    Path("far/away/inside").mkdir()
    os.symlink("far/away/inside", "near")
    for source in ("near/..", "near/../a.png", "near/../*.png"):
        [entry] = index_pictures(source, "out")
        assert (entry.key, entry.path) == ("a.png", os.path.realpath("far/away/a.png"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", "no table", "cannot be read"),
        ("a.csv", "path\n" + "x" * 200_000, "cannot be read: line"),
        ("a.txt", "s3://one/a.png\nb.png\n", "no folder or bucket in common"),
        ("a.txt", "s3://one/a.png\ns3://two/a.png\n", "no folder or bucket in common"),
        ("a.txt", "s3://one/a.png\ngs://one/a.png\n", "no folder or bucket in common"),
    ],
)
def test_lists_that_cannot_be_used_are_errors_of_the_request(name: str, content: str, says: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(InputError, match=says):
        index_pictures(name, "out")


def test_lists_of_remote_pictures_and_rows_without_a_path() -> None:
    Path("a.csv").write_text("path,label\ns3://one/in/x/a.png,cat\n,cup\ns3://one/in/b.png,cup\n")
    left_out = Skipped()
    found = {entry.key: entry.path for entry in find_pictures("a.csv", "out", left_out)}
    assert found == {"x/a.png": "s3://one/in/x/a.png", "b.png": "s3://one/in/b.png"}
    assert left_out.lines() == ["left out table rows without a path: 1"]


def test_a_link_to_itself_is_left_out() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    os.symlink("loop.png", "pictures/loop.png")
    assert [entry.key for entry in index_pictures("pictures", "out")] == ["a.png"]


def test_damaged_shards_are_written_again() -> None:
    disk.write_pictures(Path("pictures"))
    explain()
    shards = [Path("out/shards/00000.parquet"), Path("out/shards/00001.parquet")]
    before = [shard.read_bytes() for shard in shards]
    shards[0].write_bytes(b"")
    shards[1].write_bytes(before[1][:-20])
    assert explain().missing == 0
    assert [shard.read_bytes() for shard in shards] == before


def test_a_manifest_that_leads_nowhere_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PAUSE", 0)
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    os.mkdir("out")
    os.symlink("nowhere.json", "out/run.json")
    with pytest.raises(OptionError, match=r"out/run\.json can be neither written nor read"):
        explain()
    assert explain(overwrite=True).failed == 0
    assert not Path("out/run.json").is_symlink()


def test_a_manifest_that_is_being_written_is_waited_for() -> None:
    os.mkdir("out")
    Path("out/run.json").write_text('{"pict')
    rest = Timer(0.2, Path("out/run.json").write_text, ['{"pictures": 7}'])
    rest.start()
    assert Store.at("out").manifest() == {"pictures": 7}
    rest.join()

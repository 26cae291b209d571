"""What a run finds on disk, how it reads it, and how it writes: whole files, overlays in their place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import disk
import numpy as np
import pytest

from gradcam_kit.errors import InputError
from gradcam_kit.jobs import RunRequest, RunSummary, run
from gradcam_kit.jobs.sources.index import Entry, find_pictures, index_pictures
from gradcam_kit.jobs.sources.walk import Skipped
from gradcam_kit.jobs.storage import folders as files
from gradcam_kit.jobs.storage.folders import LocalFolder
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work import reader as decode
from gradcam_kit.jobs.work.reader import Decoded, Failed, Reader, batches
from gradcam_kit.methods import METHODS
from gradcam_kit.models import load_model
from gradcam_kit.pixels.decoding import read_picture
from gradcam_kit.pixels.pictures import write_picture
from gradcam_kit.render import overlay
from gradcam_kit.transforms import PictureTransform


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def explain(source: str = "pictures", model: str = "shop:net", **options: Any) -> RunSummary:
    """A run into the folder `out`."""
    return run(RunRequest(**{"model": model, "source": source, "out": "out", "workers": 2, "report": False, **options}))


def test_a_folder_is_listed_with_all_below_it_sorted_without_what_is_hidden_or_is_no_picture() -> None:
    keys = sorted(disk.write_pictures(Path("pictures")))
    for name in (".hidden.png", ".cache/x.png", "notes.txt", "table.csv"):
        path = Path("pictures", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("?")
    Path("pictures/folder.png").mkdir()
    Path("pictures/cat/around").symlink_to("..", target_is_directory=True)
    os.mkfifo("pictures/pipe.png")
    found = index_pictures("pictures", "out")
    assert [entry.key for entry in found] == keys
    assert all(os.path.samefile(entry.path, os.path.join(b"pictures", os.fsencode(entry.path))) for entry in found)
    assert {entry.folders for entry in found} == {(), ("cat",), ("cat", "deeper"), ("cup",)}


def test_the_folders_of_runs_are_no_input() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/run/overlays/a.png.grad-cam.jpg"), disk.CAT)
    disk.write_picture(Path("pictures/sub/old/overlays/a.png.grad-cam.jpg"), disk.CAT)
    Path("pictures/sub/old/run.json").write_text("{}")
    Path("pictures/sub/old/shards").mkdir()
    for source in ("pictures", "pictures/**/*.*"):
        left_out = Skipped()
        assert [entry.key for entry in find_pictures(source, "pictures/run", left_out)] == ["a.png"]
        assert left_out.runs == ["sub/old"]
        assert "left out the folders of earlier runs: sub/old" in left_out.lines()
    with pytest.raises(InputError, match=r"--out is SOURCE itself"):
        index_pictures("pictures", "pictures/../pictures")
    disk.write_picture(Path("pictures/overlays/x.jpg"), disk.CAT)  # around SOURCE only what a run writes is left out
    assert [entry.key for entry in index_pictures("pictures/run", "pictures")] == ["overlays/a.png.grad-cam.jpg"]


def test_files_globs_and_lists() -> None:
    disk.write_pictures(Path("pictures"))
    nowhere = "out"
    assert index_pictures("pictures/cat/a.png", nowhere) == [Entry("a.png", os.path.abspath("pictures/cat/a.png"))]
    assert [entry.key for entry in index_pictures("pictures/*/a.png", nowhere)] == ["cat/a.png", "cup/a.png"]
    assert [entry.key for entry in index_pictures("pictures/**/a.*", nowhere)] == [
        "cat/a.png",
        "cat/deeper/a.png",
        "cup/a.png",
    ]
    Path("pictures/list.txt").write_text("cup/a.png\n\n cat/a.png \ncup/../cup/a.png\nmissing.png\n")
    assert [entry.key for entry in index_pictures("pictures/list.txt", nowhere)] == [
        "cat/a.png",
        "cup/a.png",
        "missing.png",
    ]
    Path("pictures/cat/list.txt").write_text(f"a.png\n../cup/a.png\n{Path('pictures/top.png').absolute()}\n")
    assert [entry.key for entry in index_pictures("pictures/cat/list.txt", nowhere)] == [
        "cat/a.png",
        "cup/a.png",
        "top.png",
    ]


@pytest.mark.parametrize("source", ["nothing", "no/*.png", "empty", "empty.txt"])
def test_sources_without_pictures(source: str) -> None:
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n")
    with pytest.raises(InputError, match=f"no file or folder '{source}'|holds no pictures"):
        index_pictures(source, "out")


def marked(entries: Iterable[Entry], size: int) -> Iterator[list[tuple[Entry, bool]]]:
    return batches(((entry, False) for entry in entries), size)


@pytest.mark.parametrize("processes", [False, True])
def test_decoding_keeps_the_order_and_turns_failures_into_values(
    processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_FEW", 0)
    disk.write_pictures(Path("pictures"))
    broken = disk.break_pictures(Path("pictures"))
    entries = index_pictures("pictures", "out")
    transform = PictureTransform(size=(8, 8))
    with Reader(transform, 2, len(entries), processes) as reader:
        found = [one for batch in reader.read(marked(entries, 5), ahead=2) for one in batch]
    assert [one.entry for one in found] == entries
    assert [one.entry.key for one in found if isinstance(one, Failed)] == broken
    assert all(one.reason.startswith("PictureError: ") for one in found if isinstance(one, Failed))
    sample = next(one for one in found if one.entry.key == "cup/a.png")
    assert isinstance(sample, Decoded)
    assert np.array_equal(sample.image, transform.prepare(disk.COFFEE))
    assert (sample.box, sample.size) == ((0.0, 0.0, 150.0, 100.0), (100, 150))


def test_a_picture_that_kills_its_reader_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_FEW", 0)
    for name in "ab":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.BLACK if name == "a" else disk.CAT)
    transform = load_model("shop:deadly").transform
    with Reader(transform, 1, 2, True) as reader:
        found = [one for batch in reader.read(marked(index_pictures("pictures", "out"), 2), ahead=1) for one in batch]
    assert [isinstance(one, Failed) for one in found] == [True, False]
    assert found[0] == Failed(found[0].entry, "PictureError: cannot read the picture: the process that read it died")


@pytest.mark.exhaustive
def test_a_reader_that_dies_of_every_second_picture_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_FEW", 0)
    for name in "abc":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)
    with Reader(load_model("shop:tired").transform, 1, 3, True) as reader:
        found = [one for batch in reader.read(marked(index_pictures("pictures", "out"), 3), ahead=1) for one in batch]
    assert [isinstance(one, Failed) for one in found] == [False, False, False]


def test_no_more_pictures_are_read_ahead_than_allowed() -> None:
    disk.write_picture(Path("a.png"), disk.CAT)
    taken = []

    def endless() -> Iterator[Entry]:
        while True:
            taken.append(1)
            yield Entry("a.png", "a.png")

    with Reader(PictureTransform(size=(4, 4)), 2, 1) as reader:
        stream = reader.read(marked(endless(), 3), ahead=2)
        for _ in range(10):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert len(taken) == 3 * (10 + 2)


def test_overlays_never_share_a_file_and_always_fit() -> None:
    store = Store.at("out")
    keys = ["a.jpg", "a.png", "b/a.jpg", "l" * 250 + ".png", "l" * 250 + "2.png", "ü" * 125 + ".jpg"]
    paths = [Path(store.overlay_name(key, method, rank)) for key in keys for method in METHODS for rank in range(2)]
    assert len(set(paths)) == len(paths)
    assert max(len(os.fsencode(path.name)) for path in paths) <= 255
    assert store.overlay_name("b/a.jpg", "grad-cam") == "overlays/b/a.jpg.grad-cam.jpg"
    assert store.overlay_name("a.jpg", "grad-cam", 1) == "overlays/a.jpg.grad-cam.2.jpg"


def test_a_file_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LocalFolder("folder")
    folder.write("result.txt", b"before")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [f"{files._HOST}-{dead.pid}-0", "elsewhere-1-0", "elsewhere-2-0", f"{files._HOST}-{os.getpid()}-0"]
    for name in left:  # what processes left that were killed, and what others are writing
        Path(f"folder/.result.txt.{name}").write_bytes(b"half of")
    os.utime(f"folder/.result.txt.{left[1]}", (0, 0))
    file = Path("folder/result.txt").stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.write("result.txt", b"after")
    assert Path("folder/result.txt").read_bytes() == b"before"
    folder.write("result.txt", b"after")
    assert Path("folder/result.txt").read_bytes() == b"after"
    assert Path("folder/result.txt").stat().st_ino != file  # renamed, not written over
    assert set(os.listdir("folder")) == {"result.txt", *(f".result.txt.{name}" for name in left[2:])}


@pytest.mark.parametrize("links", [True, False])
def test_only_one_of_many_creates_a_file(links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    folder = LocalFolder("folder")
    for i in range(50):
        start = Barrier(4)

        def create(content: bytes, name: str = f"{i}.txt", start: Barrier = start) -> bool:
            start.wait()
            return folder.create(name, content)

        with ThreadPoolExecutor(4) as threads:
            created = list(threads.map(create, [b"0", b"1", b"2", b"3"]))
        assert [bytes(str(winner), "ascii") for winner in range(4) if created[winner]] == [folder.read(f"{i}.txt")]
    assert len(os.listdir("folder")) == 50
    os.symlink("nowhere", "folder/taken")
    assert not folder.create("taken", b"")
    assert not Path("folder/nowhere").exists()


def interrupted(_: int) -> None:
    raise KeyboardInterrupt


def test_the_heatmap_lies_where_the_model_looked() -> None:
    picture = np.full((400, 600, 3), 100, np.uint8)
    box = PictureTransform(size=(224, 224), resize=256).box(400, 600)
    drawn = overlay(picture, np.ones((7, 7), np.float32), box=box)
    inside = np.zeros((400, 600), bool)
    inside[25:375, 125:475] = True
    assert (drawn[inside] == overlay(picture[:1, :1], np.ones((1, 1), np.float32))[0, 0]).all()
    assert (drawn[~inside] == 60).all()
    rounded = overlay(picture, np.ones((7, 7), np.float32), box=(124.6, 25.4, 475.4, 374.6))
    assert (rounded == drawn).all()


def test_the_hottest_point_comes_back_to_its_place() -> None:
    # One bright spot, found again by a "model" that returns the brightness of its input.
    transform = PictureTransform(size=(56, 56), resize=64)
    picture = np.zeros((240, 420, 3), np.uint8)
    picture[150:166, 230:246] = 255
    heatmap = transform(picture)[0]
    heatmap = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    drawn = overlay(picture, heatmap.numpy(), box=transform.box(240, 420)).astype(int)
    rows, columns = np.nonzero(drawn[..., 0] > drawn[..., 2] + 40)  # more red than blue
    assert abs(rows.mean() - 157.5) < 2
    assert abs(columns.mean() - 237.5) < 2


def test_padding_is_cut_off() -> None:
    # The crop reaches 30 pixels beyond the top and bottom of this picture: a quarter of the heatmap each.
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[0] = 1
    picture = np.zeros((60, 120, 3), np.uint8)
    drawn = overlay(picture, heatmap, box=(0.0, -30.0, 120.0, 90.0))
    assert drawn.shape == picture.shape
    heatmap[1:3] = 1
    full = overlay(picture, heatmap, box=(0.0, -30.0, 120.0, 90.0))
    assert (full[20:40, :, 0] > drawn[20:40, :, 0]).all()
    assert (overlay(picture, np.ones((4, 4), np.float32), box=(0.0, -30.0, 120.0, 90.0)) == full[0, 0]).all()


def test_the_files_are_the_overlays_of_the_library() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.COFFEE)
    explain(methods=("grad-cam", "layer-cam"))
    loaded = load_model("shop:net")
    assert isinstance(loaded.transform, PictureTransform)
    for method in ("grad-cam", "layer-cam"):
        heatmap = METHODS[method](loaded.model)(loaded.transform(disk.COFFEE)[None])[0].numpy()
        expected = overlay(disk.COFFEE, heatmap, box=loaded.transform.box(100, 150))
        write_picture("expected.jpg", expected)
        written = read_picture(f"out/overlays/a.png.{method}.jpg").astype(int)
        assert written.shape == disk.COFFEE.shape
        assert (
            np.abs(written - read_picture("expected.jpg")).mean() < 0.3
        )  # of 255 levels, from the rounding to float16


@pytest.mark.parametrize(("asked", "expected"), [(None, 7), (0, 0), (2, 2)])
def test_as_many_overlays_as_asked(asked: int | None, expected: int) -> None:
    disk.write_pictures(Path("pictures"))
    explain(overlays=asked, batch_size=3, shard_size=4)
    assert len(list(Path("out").rglob("*.grad-cam.jpg"))) == expected


def test_an_overlay_that_cannot_be_written_fails_its_picture_and_not_the_run() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.CAT)
    Path("out/overlays/b.png.grad-cam.jpg").mkdir(parents=True)
    summary = explain(workers=1)
    assert (summary.pictures, summary.failed, summary.exit_status) == (2, 1, 1)
    assert summary.problems == ("b.png: the overlay cannot be written: Is a directory",)
    assert [row["status"] for row in disk.read_rows(Path("out"))] == ["ok", "ok"]
    assert explain(workers=1).failed == 1  # known from its row
    Path("out/overlays/b.png.grad-cam.jpg").rmdir()
    assert explain(workers=1, retry_failed=True).failed == 0
    assert Path("out/overlays/b.png.grad-cam.jpg").is_file()

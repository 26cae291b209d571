"""What a run finds on disk, how it reads it, and how it writes: whole files, overlays in their place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest
import torch

from gradcam_kit.errors import (
    InputError,
    OptionError,
    PictureError,
    UnknownNameError,
)
from gradcam_kit.jobs import RunRequest, RunSummary, run
from gradcam_kit.jobs.decode import Decoded, Failed, decoded
from gradcam_kit.jobs.index import Entry, index_pictures
from gradcam_kit.jobs.overlays import overlay_at
from gradcam_kit.jobs.store import Store, whole
from gradcam_kit.methods import METHODS
from gradcam_kit.models import load_model
from gradcam_kit.pictures import read_picture, write_picture
from gradcam_kit.render import overlay
from gradcam_kit.transforms import PictureTransform


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def explain(source: str = "pictures", model: str = "shop:net", **options: Any) -> RunSummary:
    """A run into the folder `out`."""
    return run(RunRequest(**{"model": model, "source": source, "out": Path("out"), "workers": 2, **options}))


def test_a_folder_is_listed_with_all_below_it_sorted_without_what_is_hidden_or_is_no_picture() -> None:
    keys = sorted(disk.write_pictures(Path("pictures")))
    for name in (".hidden.png", ".cache/x.png", "notes.txt", "table.csv"):
        path = Path("pictures", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("?")
    Path("pictures/folder.png").mkdir()
    Path("pictures/cat/around").symlink_to("..", target_is_directory=True)
    os.mkfifo("pictures/pipe.png")
    found = index_pictures("pictures", Path("out"))
    assert [entry.key for entry in found] == keys
    assert all(os.path.samefile(entry.path, os.path.join(b"pictures", os.fsencode(entry.path))) for entry in found)
    assert {entry.label for entry in found} == {None, "cat", "deeper", "cup"}


def test_the_folder_of_the_run_is_no_input() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/run/overlays/a.png.grad-cam.jpg"), disk.CAT)
    assert [entry.key for entry in index_pictures("pictures", Path("pictures/run"))] == ["a.png"]
    assert [entry.key for entry in index_pictures("pictures/**/*.*", Path("pictures/run"))] == ["a.png"]
    with pytest.raises(InputError, match="holds no pictures"):
        index_pictures("pictures", Path("pictures"))


def test_files_globs_and_lists() -> None:
    disk.write_pictures(Path("pictures"))
    nowhere = Path("out")
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
        index_pictures(source, Path("out"))


def test_decoding_keeps_the_order_and_turns_failures_into_values() -> None:
    disk.write_pictures(Path("pictures"))
    broken = disk.break_pictures(Path("pictures"))
    entries = index_pictures("pictures", Path("out"))
    transform = PictureTransform(size=(8, 8))
    found = list(decoded(entries, transform, workers=3, ahead=2))
    assert [one.entry for one in found] == entries
    assert [one.entry.key for one in found if isinstance(one, Failed)] == broken
    assert all(isinstance(one.error, PictureError) for one in found if isinstance(one, Failed))
    sample = next(one for one in found if one.entry.key == "cup/a.png")
    assert isinstance(sample, Decoded)
    assert torch.equal(sample.image, transform(disk.COFFEE))
    assert sample.box == (0.0, 0.0, 150.0, 100.0)


def test_no_more_pictures_are_read_ahead_than_allowed() -> None:
    disk.write_picture(Path("a.png"), disk.CAT)
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield Entry("a.png", "a.png")

    stream = decoded(endless(), PictureTransform(size=(4, 4)), workers=2, ahead=5)
    for _ in range(10):
        next(stream)
    stream.close()
    assert len(taken) == 15


def test_overlays_never_share_a_file_and_always_fit() -> None:
    store = Store(Path("out"))
    keys = ["a.jpg", "a.png", "b/a.jpg", "l" * 250 + ".png", "l" * 250 + "2.png", "ü" * 125 + ".jpg"]
    paths = [store.overlay_path(key, method, rank) for key in keys for method in METHODS for rank in range(2)]
    assert len(set(paths)) == len(paths)
    assert max(len(os.fsencode(path.name)) for path in paths) <= 255
    assert store.overlay_path("b/a.jpg", "grad-cam") == Path("out/overlays/b/a.jpg.grad-cam.jpg")
    assert store.overlay_path("a.jpg", "grad-cam", 1) == Path("out/overlays/a.jpg.grad-cam.2.jpg")


def interrupt(path: Path) -> None:
    with whole(path) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt


def test_a_file_is_written_whole_or_not_at_all() -> None:
    path = Path("result.txt")
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        interrupt(path)
    assert path.read_text() == "before"
    assert list(Path().glob("*result*")) == [path]
    file = path.stat().st_ino
    with whole(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert path.stat().st_ino != file  # renamed, not written over
    assert list(Path().glob("*result*")) == [path]


def test_a_run_is_replaced_only_when_asked_and_nothing_else_is_removed() -> None:
    disk.write_pictures(Path("pictures"))
    explain(shard_size=2)
    Path("out/notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    with pytest.raises(OptionError, match=r"'out' holds a run already; .* --overwrite"):
        explain()
    with pytest.raises(UnknownNameError, match="no method 'grad_cam'; did you mean 'grad-cam'"):
        explain(methods=("grad_cam",), overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    explain("pictures/top.png", methods=("layer-cam",), overwrite=True)
    left = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert left == {"notes.txt", "run.json", "shards/00000.parquet", "overlays/top.png.layer-cam.jpg"}
    with pytest.raises(OptionError, match=r"'shop.py' is a file"):
        explain(out=Path("shop.py"))
    with pytest.raises(OptionError, match=r"'shop.py/run' cannot be written|'shop.py/run/run.json' cannot be"):
        explain(out=Path("shop.py/run"))


def test_the_heatmap_lies_where_the_model_looked() -> None:
    picture = np.full((400, 600, 3), 100, np.uint8)
    box = PictureTransform(size=(224, 224), resize=256).box(400, 600)
    drawn = overlay_at(picture, np.ones((7, 7), np.float32), box)
    inside = np.zeros((400, 600), bool)
    inside[25:375, 125:475] = True
    assert (drawn[inside] == overlay(picture[:1, :1], np.ones((1, 1), np.float32))[0, 0]).all()
    assert (drawn[~inside] == 60).all()
    rounded = overlay_at(picture, np.ones((7, 7), np.float32), (124.6, 25.4, 475.4, 374.6))
    assert (rounded == drawn).all()


def test_the_hottest_point_comes_back_to_its_place() -> None:
    # One bright spot, found again by a "model" that returns the brightness of its input.
    transform = PictureTransform(size=(56, 56), resize=64)
    picture = np.zeros((240, 420, 3), np.uint8)
    picture[150:166, 230:246] = 255
    heatmap = transform(picture)[0]
    heatmap = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    drawn = overlay_at(picture, heatmap.numpy(), transform.box(240, 420)).astype(int)
    rows, columns = np.nonzero(drawn[..., 0] > drawn[..., 2] + 40)  # more red than blue
    assert abs(rows.mean() - 157.5) < 2
    assert abs(columns.mean() - 237.5) < 2


def test_padding_is_cut_off() -> None:
    # The crop reaches 30 pixels beyond the top and bottom of this picture: a quarter of the heatmap each.
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[0] = 1
    picture = np.zeros((60, 120, 3), np.uint8)
    drawn = overlay_at(picture, heatmap, (0.0, -30.0, 120.0, 90.0))
    assert drawn.shape == picture.shape
    heatmap[1:3] = 1
    full = overlay_at(picture, heatmap, (0.0, -30.0, 120.0, 90.0))
    assert (full[20:40, :, 0] > drawn[20:40, :, 0]).all()
    assert (overlay_at(picture, np.ones((4, 4), np.float32), (0.0, -30.0, 120.0, 90.0)) == full[0, 0]).all()


def test_the_files_are_the_overlays_of_the_library() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.COFFEE)
    explain(methods=("grad-cam", "layer-cam"))
    loaded = load_model("shop:net")
    assert isinstance(loaded.transform, PictureTransform)
    for method in ("grad-cam", "layer-cam"):
        heatmap = METHODS[method](loaded.model)(loaded.transform(disk.COFFEE)[None])[0].numpy()
        expected = overlay_at(disk.COFFEE, heatmap, loaded.transform.box(100, 150))
        write_picture("expected.jpg", expected)
        written = read_picture(f"out/overlays/a.png.{method}.jpg").astype(int)
        assert written.shape == disk.COFFEE.shape
        assert np.abs(written - read_picture("expected.jpg")).mean() < 0.1


@pytest.mark.parametrize(("asked", "expected"), [(None, 7), (0, 0), (2, 2)])
def test_as_many_overlays_as_asked(asked: int | None, expected: int) -> None:
    disk.write_pictures(Path("pictures"))
    explain(overlays=asked, batch_size=3, shard_size=4)
    assert len(list(Path("out").rglob("*.grad-cam.jpg"))) == expected


def test_an_overlay_that_cannot_be_written_fails_its_picture_and_not_the_run() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b/b.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png.grad-cam.jpg/c.png"), disk.CAT)  # a folder where b.png's overlay should be
    disk.write_picture(Path("pictures/b.png"), disk.CAT)
    summary = explain(workers=1)
    assert (summary.pictures, summary.failed, summary.exit_status) == (4, 1, 1)
    assert "b.png.grad-cam.jpg" in summary.problems[0]
    assert all(row["status"] == "ok" for row in disk.read_rows(Path("out")))

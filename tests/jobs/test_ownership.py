"""A run removes and replaces only what a run wrote, and never what it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk
import pytest
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.errors import OptionError
from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest, run
from gradcam_kit.jobs.storage.folders import LocalFolder
from gradcam_kit.report import write_report


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    for name in "ab":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)


def explain(source: str = "pictures", **options: Any) -> None:
    run_and_report(RunRequest("shop:net", source=source, **{"out": "out", "workers": 1, **options}))


def everything(folder: str = ".") -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.parametrize("name", ["metrics/mine.txt", "overlays/a.jpg", "report/index.html", "shards/x", "report.html"])
def test_overwrite_touches_nothing_where_there_is_no_run(name: str) -> None:
    Path("out", name).parent.mkdir(parents=True, exist_ok=True)
    Path("out", name).write_text("mine")
    before = everything()
    with pytest.raises(OptionError, match=r"has no run\.json but holds .*nothing is replaced"):
        explain(overwrite=True)
    assert everything() == before


@pytest.mark.parametrize("content", ["[1, 2]", '{"format": 2}', '{"name": "my app"}', "{half", "7", ""])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_run_json_of_another_program_is_no_run(
    content: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradcam_kit.jobs.storage.store._PAUSE", 0)
    Path("out/metrics").mkdir(parents=True)
    Path("out/run.json").write_text(content)
    Path("out/metrics/00000.parquet").write_text("mine")
    before = everything()
    with pytest.raises(OptionError, match=r"out/run\.json is (not JSON|not the manifest of a run)"):
        explain(overwrite=overwrite)
    assert everything() == before


def test_a_run_that_is_replaced_takes_nothing_of_others_with_it() -> None:
    explain(thumbnails=1)
    mine = ["overlays/c.jpg", "overlays/sub/d.grad-cam.png", "shards/notes.txt", "metrics/m.csv", "report/x.css"]
    for name in (*mine, "thumbnails/cat.jpg", "mine.txt"):
        Path("out", name).parent.mkdir(parents=True, exist_ok=True)
        Path("out", name).write_text("mine")
    Path("pictures/b.png").rename("pictures/c.png")
    explain(overwrite=True)
    assert {Path("out", name).read_text() for name in (*mine, "thumbnails/cat.jpg", "mine.txt")} == {"mine"}
    assert not Path("out/overlays/b.png.grad-cam.jpg").exists()
    assert [row["path"] for row in _rows()] == ["a.png", "c.png"]


def _rows() -> list[dict[str, Any]]:
    for path in Path("out/shards").glob("*.txt"):
        path.unlink()
    return disk.read_rows(Path("out"))


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("place", ["out/overlays/mine", "out/shards", "out/metrics/x", "link"])
def test_what_is_read_is_never_removed(place: str, lists: bool) -> None:
    explain()
    Path("out/report").mkdir(exist_ok=True)
    Path("link").symlink_to("out/report")
    disk.write_picture(Path(place, "p.png"), disk.CAT)
    Path("list.txt").write_text(f"{place}/p.png\n")
    before = everything()
    with pytest.raises(OptionError, match=r"--overwrite would remove .* from 'out' before it is read"):
        explain("list.txt" if lists else place, overwrite=True)
    assert everything() == before


def test_a_list_or_names_among_what_is_removed_are_refused_too() -> None:
    explain()
    Path("out/overlays/list.txt").write_text(f"{Path.cwd()}/pictures/a.png\n")
    Path("out/metrics").mkdir()
    Path("out/metrics/names.txt").write_text("x\ny\nz\n")
    for options in ({"source": "out/overlays/list.txt"}, {"class_names": Path("out/metrics/names.txt")}):
        before = everything()
        with pytest.raises(OptionError, match="--overwrite would remove"):
            explain(**options, overwrite=True)
        assert everything() == before


def test_links_in_a_run_are_not_emptied() -> None:
    explain()
    Path("elsewhere").mkdir()
    Path("elsewhere/a.png.grad-cam.jpg").write_text("mine")
    os.rename("out/shards/00000.parquet", "elsewhere/00000.parquet")
    Path("out/shards/00000.parquet").symlink_to("../../elsewhere/00000.parquet")
    with pytest.raises(OptionError, match=r"out/shards/00000\.parquet is a symbolic link"):
        explain(overwrite=True)
    Path("out/shards/00000.parquet").unlink()
    for name in os.listdir("out/overlays"):
        Path("out/overlays", name).unlink()
    Path("out/overlays").rmdir()
    Path("out/overlays").symlink_to("../elsewhere")
    with pytest.raises(OptionError, match=r"out/overlays is a symbolic link"):
        explain(overwrite=True)
    assert Path("elsewhere/a.png.grad-cam.jpg").read_text() == "mine"


def test_an_overlay_is_not_written_through_a_link() -> None:
    Path("precious.txt").write_text("mine")
    Path("out/overlays").mkdir(parents=True)
    Path("out/overlays/a.png.grad-cam.jpg").symlink_to("../../precious.txt")
    explain()
    assert Path("precious.txt").read_text() == "mine"
    assert [row["error"] is None for row in disk.read_rows(Path("out"))] == [False, True]


@pytest.mark.parametrize("name", ["overlays/a.png.grad-cam.jpg", "thumbnails/00000.parquet", "report/speed.json"])
def test_a_first_run_replaces_nothing_either(name: str) -> None:
    Path("out", name).parent.mkdir(parents=True)
    Path("out", name).write_text("mine")
    before = everything()
    with pytest.raises(OptionError, match="no run wrote it"):
        explain()
    assert everything() == before


@pytest.mark.parametrize("part", ["shards", "overlays", "thumbnails"])
@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: path.symlink_to("nowhere")])
def test_what_keeps_a_folder_from_being_made_is_said_before_anything_is_written(
    part: str, make: Callable[[Path], Any]
) -> None:
    Path("out").mkdir()
    make(Path("out", part))
    with pytest.raises(OptionError, match=f"out/{part} exists, but the run needs"):
        explain()
    assert os.listdir("out") == [part]


def test_a_first_run_goes_where_others_have_files_of_other_names() -> None:
    for name in ("overlays/mine.txt", "report/index.html", "notes.md"):
        Path("out", name).parent.mkdir(parents=True, exist_ok=True)
        Path("out", name).write_text("mine")
    explain()
    assert all(
        Path("out", name).read_text() == "mine" for name in ("overlays/mine.txt", "report/index.html", "notes.md")
    )


def test_a_page_of_somebody_else_stays() -> None:
    explain(report=False)
    Path("out/report.html").write_text("<html>mine</html>")
    for attempt in (explain, lambda: write_report("out")):
        with pytest.raises(OptionError, match=r"out/report\.html is not the page of a run, so it is not replaced"):
            attempt()
    assert CliRunner().invoke(app, ["report", "out"]).exit_code == 2
    assert Path("out/report.html").read_text() == "<html>mine</html>"
    assert CliRunner().invoke(app, ["report", "out", "--overwrite"]).exit_code == 0
    explain()  # its own page is replaced as ever
    assert "gradcam-kit-rows" in Path("out/report.html").read_text()


def test_what_editors_keep_beside_a_file_is_not_taken_for_a_rest_of_ours() -> None:
    names = [".rows.csv.swp", ".rows.csv.bak", ".rows.csv.2024-01-02", ".rows.csv.old-copy"]
    Path("folder").mkdir()
    for name in names:
        Path("folder", name).write_text("mine")
        os.utime(f"folder/{name}", (0, 0))
    LocalFolder("folder").write("rows.csv", b"")
    assert sorted(os.listdir("folder")) == sorted([*names, "rows.csv"])


def interrupting(when: int) -> Callable[..., Any]:
    """An end by the keyboard when the model explains its n-th batch."""
    from gradcam_kit.jobs.work.explainer import Explainer

    whole, calls = Explainer.explain, []

    def explained(self: Explainer, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == when:
            raise KeyboardInterrupt
        return whole(self, batch)

    return explained


@pytest.mark.parametrize(
    ("when", "advice"), [(1, "run the same command to start it"), (3, "without --overwrite to resume")]
)
def test_the_advice_after_an_interruption_is_true(when: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    explain()
    before = everything("out")
    disk.write_picture(Path("pictures/c.png"), disk.PERSON)
    command = ["run", "pictures", "--model", "shop:net", "--out", "out", "--shard-size", "1", "--batch-size", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("gradcam_kit.jobs.work.explainer.Explainer.explain", interrupting(when))
        done = CliRunner().invoke(app, [*command, "--overwrite"])
    assert done.exit_code == 130
    assert advice in done.output
    if when == 1:
        assert everything("out") == before
        done = CliRunner().invoke(app, [*command, "--overwrite"])
        assert (done.exit_code, "3 of 3 pictures explained in" in done.output) == (0, True)
    else:
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, "of them before" in done.output) == (0, True)
    assert json.loads(Path("out/run.json").read_text())["pictures"] == 3


def test_an_interruption_while_a_run_is_removed_leaves_one_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    explain(shard_size=1)
    whole = LocalFolder.remove

    def half(self: LocalFolder, *names: str) -> None:
        whole(self, *names[:1])
        raise KeyboardInterrupt

    request = RunRequest("shop:net", source="pictures", out="out", workers=1, shard_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "remove", half)
        assert run(RunRequest(**{**vars(request), "methods": ("layer-cam",), "overwrite": True})).go_on == ""
    assert run(request).before == 1  # it is still the old run
    assert run(RunRequest(**{**vars(request), "methods": ("layer-cam",), "overwrite": True})).failed == 0
    assert {row["method"] for row in disk.read_rows(Path("out"))} == {"layer-cam"}


def test_a_full_disk_after_overwriting_says_which_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    explain()
    with monkeypatch.context() as patch:
        disk.fill_up(patch, at="shards/00001.parquet")
        with pytest.raises(OptionError, match="leave out --overwrite to continue from here"):
            explain(overwrite=True, shard_size=1)
    assert run(RunRequest("shop:net", source="pictures", out="out", workers=1, shard_size=1)).before == 1

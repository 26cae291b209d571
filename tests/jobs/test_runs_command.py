"""Runs and bad input through the command line, from SOURCE to exit status."""

from __future__ import annotations

import os
import pickle
import tempfile
from functools import partial
from pathlib import Path

import disk
import pytest
from typer.testing import CliRunner

from gradcam_kit.cli import app


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def command(*arguments: str, model: str = "shop:net", out: str = "out") -> tuple[int, str, str]:
    """Exit status, standard output and the last line of the errors."""
    done = CliRunner().invoke(app, ["run", *arguments, "--model", model, "--out", out, "--workers", "1"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, (done.stderr.splitlines() or [""])[-1]


def paths(out: str = "out") -> list[str]:
    return [row["path"] for row in disk.read_rows(Path(out))]


@pytest.mark.parametrize("source", ["pictures", "pictures/**", "file://{here}/pictures", "file://{here}/pictures/**"])
def test_the_pictures_of_the_run_itself_are_no_input(source: str) -> None:
    disk.write_picture(Path("pictures/one/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.COFFEE)
    out = source.format(here=os.getcwd()).removesuffix("/**") + "/out"
    for before in ("", " (2 of them before)"):
        status, said, _ = command(source.format(here=os.getcwd()), out=out)
        assert (status, f"2 of 2 pictures explained{before} in" in said) == (0, True)
    assert paths("pictures/out") == ["b.png", "one/a.png"]
    assert Path("pictures/out/overlays/one/a.png.grad-cam.jpg").is_file()
    assert Path("pictures/out/report.html").is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "one/a.png\ngone.png\nb.png\n"),
        ("list.csv", "path,label\none/a.png,cat\ngone.png,cup\nb.png,unheard-of\n"),
    ],
)
def test_lists_and_files_that_have_vanished(name: str, text: str) -> None:
    disk.write_picture(Path("pictures/one/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.COFFEE)
    Path("pictures", name).write_text(text)
    status, said, problem = command(f"pictures/{name}")
    assert (status, problem) == (1, "failed: gone.png: cannot read the picture: No such file or directory")
    assert "2 of 3 pictures explained" in said
    assert paths() == ["b.png", "gone.png", "one/a.png"]
    labels = {row["path"]: (row["label"], row["correct"]) for row in disk.read_rows(Path("out"))}
    assert labels["b.png"] == ((None, None) if name == "list.txt" else ("unheard-of", None))
    if name == "list.csv":
        assert labels["one/a.png"][1] is not None
        status, _, problem = command(f"pictures/{name}", "--targets", "label", out="labeled")
        assert status == 1
        assert "the label 'unheard-of' is not a class of the model" in disk.read_rows(Path("labeled"))[0]["error"]


def test_it_stops_at_the_first_failure_goes_on_and_tries_again() -> None:
    for name in "abcdef":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)
    Path("pictures/d.png").write_bytes(b"")
    options = ("--shard-size", "2", "--batch-size", "1")
    status, said, problem = command("pictures", *options, "--fail-fast")
    assert status == 1
    assert "of 6 pictures explained in" in said
    assert "missing shards: 2" in problem
    assert paths() == ["a.png", "b.png"]
    status, said, _ = command("pictures", *options)
    assert (status, "5 of 6 pictures explained (2 of them before) in" in said) == (1, True)
    disk.write_picture(Path("pictures/d.png"), disk.CAT)
    assert command("pictures", *options)[0] == 1
    assert command("pictures", *options, "--retry-failed")[0] == 0
    status, _, problem = command("pictures", "--shard-size", "3")
    assert (status, "different shard_size: 2 before, 3 now" in problem) == (2, True)
    assert command("pictures", "--shard-size", "3", "--overwrite")[0] == 0
    assert len(list(Path("out/shards").iterdir())) == 2


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    with monkeypatch.context() as patch:
        disk.fill_up(patch)
        status, said, problem = command("pictures", "--shard-size", "2")
    assert (status, said) == (2, "")
    assert problem == (
        "gradcam-kit: 'out/shards/00002.parquet' cannot be written: No space left on device; complete results in 'out' "
        "stay valid; run the same command to resume"
    )
    status, said, _ = command("pictures", "--shard-size", "2")
    assert status == 0
    assert "7 of 7 pictures explained (" in said


def test_a_disk_that_is_full_before_all_overlays_are_drawn_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):  # more than wait to be drawn at once
        disk.write_picture(Path(f"pictures/{i:02}.png"), disk.CAT)
    with monkeypatch.context() as patch:
        disk.fill_up(patch, "overlays/13.png.grad-cam.jpg", after="shards/00000.parquet")
        status, said, problem = command("pictures", "--shard-size", "10")
    assert (status, said) == (2, "")
    assert problem == (
        "gradcam-kit: 'out/overlays/13.png.grad-cam.jpg' cannot be written: No space left on device; complete results "
        "in 'out' stay valid; run the same command to resume"
    )
    assert paths() == [f"{i:02}.png" for i in range(10)]
    status, said, _ = command("pictures", "--shard-size", "10")
    assert (status, "20 of 20 pictures explained (10 of them before)" in said) == (0, True)


def test_a_place_where_nothing_can_be_written_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    Path("file").write_text("in the way")
    status, said, problem = command("pictures", out="file/out")
    assert (status, said) == (2, "")
    assert problem.endswith("cannot be written: Not a directory; make room for it, or choose another folder")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_while_the_run_is_planned_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    status, said, problem = command("pictures")
    assert (status, said) == (2, "")
    assert problem.startswith("gradcam-kit: the plan of the run cannot be written to ")
    assert not Path("out").exists()


def test_a_checkpoint_that_carries_code_is_refused_and_not_run() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    Path("evil.pt").write_bytes(pickle.dumps(_Evil()))
    status, said, problem = command("pictures", "--checkpoint", "evil.pt")
    assert (status, said) == (2, "")
    assert problem.startswith("gradcam-kit: evil.pt is not a plain file of tensors")
    assert not Path("executed").exists()
    assert not Path("out").exists()


class _Evil:
    def __reduce__(self) -> object:
        return os.mkdir, ("executed",)


def test_a_model_whose_output_is_no_class_scores_is_a_wrong_request() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    status, said, problem = command("pictures", model="shop:dense")
    assert (status, said) == (2, "")
    assert problem.startswith("gradcam-kit: the model's output has shape (1, 8, 7, 9)")
    assert not Path("out").exists()


def test_too_little_memory_is_said_and_survived() -> None:
    disk.write_pictures(Path("pictures"))
    status, said, problem = command("pictures", "--batch-size", "7", model="shop:small")
    assert (status, "7 of 7 pictures explained" in said) == (0, True)
    assert problem == "note: cpu ran out of memory; continuing with batches of 3"

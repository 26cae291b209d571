"""Pictures, lists and results on remote storage, also where only pyarrow knows the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import disk
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.errors import InputError
from gradcam_kit.jobs import load_run
from gradcam_kit.jobs.sources.index import Entry, find_pictures, index_pictures
from gradcam_kit.jobs.sources.plan import make_plan
from gradcam_kit.jobs.sources.walk import Skipped
from gradcam_kit.jobs.storage import addresses


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_pictures(Path("pictures"))
    yield
    addresses._arrow_system.cache_clear()


class Buckets:
    """Arrow's way to `s3://`, where folders of this machine are the buckets."""

    asked: ClassVar[list[str]] = []

    @classmethod
    def from_uri(cls, uri: str) -> tuple[fs.FileSystem, str]:
        cls.asked.append(uri)
        if not uri.startswith("s3://"):
            raise pa.ArrowInvalid(f"Unrecognized filesystem type in URI: {uri}")
        return fs.SubTreeFileSystem(str(Path.cwd()), fs.LocalFileSystem()), uri.removeprefix("s3://").rstrip("/")


@pytest.fixture
def only_arrow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No library of fsspec's is installed; the roots that Arrow is asked for."""

    def missing(path: str) -> Any:
        raise ImportError("Install s3fs to access S3\nand more")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    monkeypatch.setattr(fs, "FileSystem", Buckets)
    monkeypatch.setattr(Buckets, "asked", [])
    return Buckets.asked


def run_command(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["run", *arguments, "--model", "shop:net", "--workers", "2", "--shard-size", "3"])
    assert done.exit_code == 0, done.output
    return done.output


def content(folder: str) -> dict[str, bytes]:
    kept = [path for name in ("shards", "overlays") for path in Path(folder, name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_without_a_library_for_the_storage_arrow_brings_the_same_run(only_arrow: list[str]) -> None:
    next(Path("pictures/cup").glob("caf*")).unlink()  # a name that no object of a bucket can have
    Path("outs").mkdir()
    run_command("pictures", "--out", "local")
    run_command("s3://pictures", "--out", "s3://outs/run")
    assert content("outs/run") == content("local")
    assert sorted(set(only_arrow)) == ["s3://outs/", "s3://pictures/"]
    assert len(only_arrow) == 2  # not once per file
    assert "6 of them before" in run_command("s3://pictures/**", "--out", "s3://outs/run")
    run = load_run("s3://outs/run")
    assert run.overlay(0).shape == disk.CAT.shape
    Path("outs/run/shards/00000.parquet").unlink()
    assert "3 of them before" in run_command("s3://pictures/", "--out", "s3://outs/run")
    assert "before" not in run_command("s3://pictures", "--out", "s3://outs/run", "--overwrite")
    assert content("outs/run") == content("local")


def test_storage_that_nobody_knows_is_said_in_one_line(only_arrow: list[str]) -> None:
    done = CliRunner().invoke(app, ["run", "gdrive://x/y", "--model", "shop:net", "--out", "out"])
    assert done.exit_code == 2
    [line] = done.output.splitlines()
    assert line.endswith(
        "'gdrive://x/y' cannot be used: Install s3fs to access S3; Arrow's own file system fails too: "
        "Unrecognized filesystem type in URI: gdrive://x/"
    )


def test_storage_that_cannot_be_reached_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str) -> Any:
        raise OSError("Unable to load libjvm\ntried /usr/lib")

    monkeypatch.setattr(fsspec.core, "url_to_fs", unreachable)
    with pytest.raises(InputError, match=r"'hdfs://host/x' cannot be used: Unable to load libjvm$"):
        index_pictures("hdfs://host/x", "out")


@pytest.mark.parametrize("arguments", [("memory://x", "--out", "out"), ("pictures", "--out", "memory://x")])
def test_storage_that_refuses_is_said_in_one_line(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no credentials\nat all")

    for name in ("isdir", "isfile", "cat_file"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    done = CliRunner().invoke(app, ["run", *arguments, "--model", "shop:net"])
    assert done.exit_code == 2
    assert done.output.splitlines() == ["gradcam-kit: 'memory://x' cannot be reached: RuntimeError: no credentials"]


LINES = ["path,label", "cat/a.png,cat", "./cup/../cat/deeper/a.png,person"]


def write_lists(root: str) -> None:
    """The same two pictures in a list and in tables of all kinds."""
    system, folder = fsspec.core.url_to_fs(root)
    folder = folder.rstrip("/")
    system.makedirs(f"{folder}/cat/deeper", exist_ok=True)
    for name in ("cat/a.png", "cat/deeper/a.png"):
        system.pipe_file(f"{folder}/{name}", Path("pictures", name).read_bytes())
    system.pipe_file(f"{folder}/l.csv", "\ufeff".encode() + "\r\n".join(LINES).encode())
    system.pipe_file(f"{folder}/l.tsv", "\n".join(LINES).replace(",", "\t").encode())
    system.pipe_file(f"{folder}/l.txt", "\n\n".join(line.partition(",")[0] for line in LINES[1:]).encode())
    table = pa.Table.from_pylist([dict(zip(("path", "label"), line.split(","), strict=True)) for line in LINES[1:]])
    with system.open(f"{folder}/l.parquet", "wb") as file:
        pq.write_table(table, file)


@pytest.mark.parametrize("root", ["memory://lists", "memory:/", "file://{here}/lists", "lists"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "txt"])
def test_lists_and_tables_name_pictures_beside_them_wherever_they_are(root: str, ending: str) -> None:
    root = root.format(here=Path.cwd())
    write_lists(f"{root}/")
    found = index_pictures(f"{root}/l.{ending}", "out")
    place = root if "memory:" in root or "file:" in root else str(Path.cwd() / root)
    labels = (None, None) if ending == "txt" else ("cat", "person")
    assert found == [
        Entry("cat/a.png", f"{place}/cat/a.png", labels[0]),
        Entry("cat/deeper/a.png", f"{place}/cat/deeper/a.png", labels[1]),
    ]
    fsspec.filesystem("memory").store.clear()


def test_a_remote_table_is_explained_with_its_labels() -> None:
    write_lists("memory://tables")
    run_command("memory://tables/l.csv", "--out", "out")
    assert [(row["path"], row["label"]) for row in disk.read_rows(Path("out"))] == [
        ("cat/a.png", "cat"),
        ("cat/deeper/a.png", "person"),
    ]
    assert load_run("out").picture(0).shape == disk.CAT.shape


def test_a_remote_list_may_name_pictures_elsewhere() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/lists/l.txt", b"../far/a.png\nmemory://far/b.png\n")
    found = index_pictures("memory://lists/l.txt", "out")
    assert found == [Entry("a.png", "memory://far/a.png"), Entry("b.png", "memory://far/b.png")]
    system.pipe_file("/lists/l.txt", f"{Path.cwd()}/pictures/top.png\n".encode())
    assert [entry.path for entry in index_pictures("memory://lists/l.txt", "out")] == [f"{Path.cwd()}/pictures/top.png"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_with_other_separators_is_refused_and_says_how_to_write_it(separator: str) -> None:
    Path("l.csv").write_text("\n".join(LINES).replace(",", separator))
    done = CliRunner().invoke(app, ["run", "l.csv", "--model", "shop:net", "--out", "out"])
    assert done.exit_code == 2
    assert "has no column 'path'" in done.output
    assert "separate columns by commas, or by tabs in a .tsv file" in " ".join(done.output.split())


def test_a_picture_with_two_labels_keeps_the_first_and_the_other_is_said() -> None:
    rows = ["path,label", "top.png,cup", "top.png,cup", "./top.png,cat", "cat/a.png,cat", "top.png,"]
    Path("pictures/l.csv").write_text("\n".join(rows))
    with closing(make_plan("pictures/l.csv", "out", 10)) as plan:
        assert list(plan.entries())[1].label == "cup"
    assert plan.left_out.lines() == [
        "left out repetitions of pictures: 3",
        "ignored different labels in these repetitions (1): top.png is 'cup' and not 'cat'",
    ]


def test_pictures_that_other_runs_wrote_below_a_remote_folder_are_left_out() -> None:
    system = fsspec.filesystem("memory")
    for path in ("top.png", "earlier/run.json", "earlier/shards/00000.parquet", "earlier/overlays/top.png"):
        system.pipe(f"/bucket/{path}", b"")
    for path in ("out/run.json", "out/shards/00000.parquet", "out/overlays/top.png", "named/run.json", "named/a.png"):
        system.pipe(f"/bucket/{path}", b"")
    left_out = Skipped()
    found = [entry.key for entry in find_pictures("memory://bucket", "memory://bucket/out", left_out)]
    assert sorted(found) == ["named/a.png", "top.png"]
    assert left_out.runs == ["earlier"]
    system.rm("/bucket", recursive=True)

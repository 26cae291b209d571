"""Addresses in lists and in folders of runs: files on one storage, nothing that composes or computes."""

from __future__ import annotations

import json
from pathlib import Path

import disk
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.errors import InputError
from gradcam_kit.jobs import RunRequest, load_run, run
from gradcam_kit.jobs.sources.index import index_pictures
from gradcam_kit.jobs.storage.addresses import check_address, remote
from gradcam_kit.jobs.storage.folders import folder_at, opened


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_picture(Path("pictures/a.png"), disk.CAT)


COMPOSED = [
    "reference://x.jpg::file:///tmp/evil.json",
    "file::zip://a.png::pictures.zip",
    "simplecache::s3://bucket/a.png",
    "filecache://bucket/a.png",
    "blockcache::memory://a.png",
    "zip://a.png",
    "tar://a.png",
    "dir://a.png",
    "github://org:repo@main/a.png",
    "git://a.png",
    "data://image/png;base64,AAAA",
    "generic://a.png",
    "jupyter://a.png",
    "REFERENCE://a.png",
    "s3://bucket/a.png::reference://b",
]


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
@pytest.mark.parametrize("line", COMPOSED)
def test_a_line_of_a_list_chooses_no_composed_storage(kind: str, line: str) -> None:
    name = f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"path": ["pictures/a.png", line]}), name)
    else:
        head = "path\n" if kind == "csv" else ""
        Path(name).write_text(f'{head}pictures/a.png\n"{line}"\n' if kind == "csv" else f"pictures/a.png\n{line}\n")
    done = CliRunner().invoke(app, ["run", name, "--model", "shop:net", "--out", "out"])
    assert (done.exit_code, done.output.count("\n"), f"'{name}' names a picture" in done.output) == (2, 1, True)
    assert not Path("out").exists()


@pytest.mark.parametrize("line", COMPOSED)
def test_nothing_else_opens_it_either(line: str) -> None:
    for use in (lambda: opened(line).__enter__(), lambda: folder_at(line), lambda: index_pictures(line, "out")):
        with pytest.raises(InputError, match=r"cannot be used: .*expected a path or a plain address"):
            use()


def test_the_root_of_a_run_that_was_sent_is_an_address_like_others() -> None:
    run(RunRequest("demo", source="pictures", out="out", workers=1, report=False))
    manifest = json.loads(Path("out/run.json").read_text())
    manifest["about"]["root"] = "reference://::file:///tmp/evil.json"
    Path("out/run.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="it chains several kinds of storage"):
        load_run("out").picture(0)


@pytest.mark.parametrize(
    "line", ["memory://far/a.png", "s3://b/a.png", "gs://b/a.png", "https://host/a.png", "hf://a/b"]
)
def test_plain_addresses_are_taken(line: str) -> None:
    Path("list.txt").write_text(f"{line}\n")
    assert [entry.path for entry in index_pictures("list.txt", "out")] == [line]


def test_a_kind_of_storage_that_a_program_registers_is_taken_where_a_person_names_it() -> None:
    class Own(MemoryFileSystem):
        protocol = "ownstore"

    fsspec.register_implementation("ownstore", Own, clobber=True)
    check_address("ownstore://x/a.png")
    check_address("ownstore://x/a.png", "ownstore")  # in a list that lies there itself
    Path("list.txt").write_text("ownstore://x/a.png\n")
    with pytest.raises(InputError, match="ownstore:// is not one of the simple kinds"):
        index_pictures("list.txt", "out")


@pytest.mark.parametrize("out", ["s3://bucket/x", "HTTP://host/x", "memory://x", "file:///tmp/x", "gs:/bucket/x"])
def test_what_is_written_to_this_machine_alone_takes_no_address(out: str) -> None:
    before = sorted(Path().rglob("*"))
    asked = ["compare", "pictures/a.png", "--model", "shop:net", "--method", "eigen-cam", "--out", f"{out}.png"]
    for command in (["demo", "--out", out], asked):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert "is an address, but" in done.output
        assert "give a local path" in done.output
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("address", ["memory://Far/a.png", "MEMORY://Far/a.png", "Memory://Far/a.png"])
def test_the_kind_of_storage_is_named_in_any_letters(address: str) -> None:
    with fsspec.open("memory://Far/a.png", "wb") as file:
        file.write(Path("pictures/a.png").read_bytes())
    found = list(index_pictures(address, "out"))
    assert [entry.key for entry in found] == ["a.png"]
    with opened(found[0].path) as file:
        assert file.read() == Path("pictures/a.png").read_bytes()
    system, _ = remote("HTTP://host/a.png")
    assert type(system) is type(remote("http://host/a.png")[0])


def test_a_name_with_colons_is_a_file_of_this_machine() -> None:
    disk.write_picture(Path("pictures/a::b.png"), disk.CAT)
    Path("list.txt").write_text("pictures/a::b.png\n")
    assert [entry.key for entry in index_pictures("list.txt", "out")] == ["pictures/a::b.png"]

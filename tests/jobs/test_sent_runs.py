"""The folder of a run is data: it may come from anybody, be damaged, and name anything."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import disk
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.errors import GradCamKitError, InputError, OptionError
from gradcam_kit.jobs import EvaluateRequest, RunRequest, evaluate, load_run, run
from gradcam_kit.jobs.export import export_run
from gradcam_kit.report import write_report

SHARD = Path("out/shards/00000.parquet")
EVIL = "open('CODE_RAN', 'w').close()\ndef make(): open('CODE_RAN', 'w').close()\nclass Method: pass\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its pictures, of which each test gets a copy."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        disk.move_in(folder, patch)
        for name in "ab":
            disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)
        run(ASKED)
    return folder


@pytest.fixture(autouse=True)
def workplace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    for name in ("pictures", "out"):
        shutil.copytree(made / name, tmp_path / name)


ASKED = RunRequest("demo", source="pictures", out="out", workers=1, report=False)


def change(*keys: str, value: Any) -> None:
    manifest = json.loads(Path("out/run.json").read_text())
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    Path("out/run.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("place", ["out", "."])
@pytest.mark.parametrize(
    ("field", "value", "option"),
    [("model", "evil:make", "--model evil:make"), ("methods", ["evil:Method"], "--method evil:Method")],
)
def test_nothing_is_imported_because_run_json_names_it(
    place: str, field: str, value: Any, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(place, "evil.py").write_text(EVIL)
    change("about", "request", field, value=value)
    monkeypatch.chdir(place)
    directory = "." if place == "out" else "out"
    status = CliRunner().invoke(app, ["evaluate", directory, "--metric", "sparseness"])
    assert (status.exit_code, option in status.output, status.output.count("\n")) == (2, True, 1)
    for use in (load_run, write_report, lambda where: export_run(where, "csv")):
        use(directory)
    assert not Path("CODE_RAN").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("spec", ["os:abort", "sys:exit", "builtins:print", "subprocess:Popen", "shop:net"])
def test_modules_that_are_loaded_are_not_asked_either(spec: str) -> None:
    change("about", "request", "model", value=spec)
    with pytest.raises(OptionError, match=f"if you trust this module, pass --model {spec}"):
        evaluate(EvaluateRequest("out", ("sparseness",)))


def test_what_is_named_again_is_used() -> None:
    asked = {"source": "pictures", "out": "mine", "workers": 1, "report": False}
    run(RunRequest("shop:net", methods=("shop:Positive", "grad-cam"), **asked))
    for spec in ("shop:net", "shop:Positive"):
        sys.modules["gradcam_kit.models.user_code"]._named.discard(spec)  # as in another process
    command = ["evaluate", "mine", "--metric", "sparseness", "--no-baselines"]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--model", "shop:net"]).exit_code == 2
    done = CliRunner().invoke(app, [*command, "--model", "shop:net", "--method", "shop:Positive"])
    assert (done.exit_code, "2 of 2 pictures measured" in done.output) == (0, True)
    wrong = CliRunner().invoke(app, [*command, "--model", "shop:net", "--method", "shop:Faulty"])
    assert (wrong.exit_code, "the run has no method 'shop:Faulty'" in wrong.output) == (2, True)


BAD = [
    (("format",), 3),
    (("format",), "2"),
    (("pictures",), -1),
    (("pictures",), "many"),
    (("shard_size",), 0),
    (("methods",), ["grad-cam"]),
    (("methods",), {"../../evil": {"normalize": "minmax"}}),
    (("methods",), {"grad-cam": {"normalize": "maximal"}}),
    (("layers",), {"grad-cam": 7}),
    (("class_names",), [1, 2]),
    (("dtype",), ["float32"]),
    (("metrics",), None),
    (("about",), None),
    (("about", "root"), 5),
]


@pytest.mark.parametrize(("keys", "value"), BAD)
def test_a_field_that_is_not_as_runs_write_it_is_named(keys: tuple[str, ...], value: Any) -> None:
    change(*keys, value=value)
    for use in (load_run, write_report, lambda out: export_run(out, "csv"), lambda out: evaluate(EvaluateRequest(out))):
        with pytest.raises(
            InputError, match=rf"out/run\.json (has the {keys[-1]}|is not the manifest of a run: .*{keys[-1]} is)"
        ):
            use("out")
    assert not Path("evil").exists()


@pytest.mark.parametrize("field", ["model", "mean", "methods", "class_names", "image_size"])
def test_a_request_of_another_shape_is_named(field: str) -> None:
    change("about", "request", field, value={"x": 1})
    with pytest.raises(InputError, match=rf"about\.request\.{field} is not"):
        evaluate(EvaluateRequest("out", ("sparseness",)))


@pytest.mark.parametrize("content", [b"{half", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b""])
def test_a_damaged_run_json_is_one_line_that_names_it(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcam_kit.jobs.storage.store._PAUSE", 0)
    Path("out/run.json").write_bytes(content)
    for command in (["report", "out"], ["evaluate", "out"], ["export", "out", "--to", "csv"]):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, done.output.count("\n"), "out/run.json" in done.output) == (2, 1, True)


def test_a_run_json_that_is_no_file_or_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gradcam_kit.jobs.storage.store._LARGEST", 10)
        with pytest.raises(OptionError, match=r"out/run\.json has [\d,]+ bytes"):
            load_run("out")
    Path("out/run.json").unlink()
    for make in (os.mkdir, os.mkfifo):
        make("out/run.json")
        with pytest.raises(OptionError, match=r"out/run\.json cannot be read"):
            load_run("out")
        os.rmdir("out/run.json") if os.path.isdir("out/run.json") else os.unlink("out/run.json")


DAMAGE = {
    "zeros": lambda content: content[:200] + b"\0" * 300 + content[500:],
    "one bit": lambda content: content[:150] + bytes([content[150] ^ 1]) + content[151:],
    "cut": lambda content: content[:-40],
    "empty": lambda content: b"",
    "text": lambda content: b"not a table",
}


@pytest.mark.parametrize("folder", ["shards", "thumbnails"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_same_command_makes_a_damaged_shard_again(folder: str, damage: str) -> None:
    whole, path = disk.read_rows(Path("out")), Path("out", folder, "00000.parquet")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert run(ASKED).before == 0
    assert [row["path"] for row in disk.read_rows(Path("out"))] == [row["path"] for row in whole]
    assert run(ASKED).before == 2


@pytest.mark.parametrize("damage", ["zeros", "one bit"])
def test_who_reads_a_damaged_shard_is_told_its_name_and_what_to_do(damage: str) -> None:
    SHARD.write_bytes(DAMAGE[damage](SHARD.read_bytes()))
    uses = (list, lambda found: found.table(), lambda found: found[0])
    for use in uses:
        with pytest.raises(InputError, match=r"out/shards/00000\.parquet is damaged .* to rebuild it"):
            use(load_run("out"))
    for command in (["report", "out"], ["export", "out", "--to", "csv"], ["evaluate", "out"]):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, done.output.count("\n"), "00000.parquet" in done.output) == (2, 1, True)


def test_measurements_that_are_damaged_are_made_again_and_those_of_others_stay() -> None:
    request = EvaluateRequest("out", ("sparseness",), baselines=False)
    evaluate(request)
    path = Path("out/metrics/00000.parquet")
    path.write_bytes(DAMAGE["zeros"](path.read_bytes()))
    assert evaluate(request).before == 0
    pq.write_table(pa.table({"mine": [1, 2]}), path)
    mine = path.read_bytes()
    with pytest.raises(OptionError, match=r"metrics/00000\.parquet is not a file of measurements"):
        evaluate(request)
    assert path.read_bytes() == mine


@pytest.mark.parametrize("content", ["a table of others", "paths of others", "rows of a run"])
def test_evaluate_replaces_files_of_others_only_when_told(content: str) -> None:
    path = Path("out/metrics/00000.parquet")
    path.parent.mkdir()
    if content == "rows of a run":
        shutil.copy(SHARD, path)
    else:
        pq.write_table(pa.table({"mine": [1]} if content == "a table of others" else {"path": ["a.png"]}), path)
    mine = path.read_bytes()
    asked = ["evaluate", "out", "--metric", "sparseness", "--no-baselines"]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.output.count("\n"), "metrics/00000.parquet" in done.output) == (2, 1, True)
    assert path.read_bytes() == mine
    assert CliRunner().invoke(app, [*asked, "--overwrite"]).exit_code == 0
    assert pq.read_table(path).num_rows == 2


def rewritten(**columns: Any) -> None:
    table = pq.read_table(SHARD)
    for name, values in columns.items():
        kind = values.type if isinstance(values, pa.Array) else table.schema.field(name).type
        table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    pq.write_table(table, SHARD)


@pytest.mark.parametrize("table", [{"mine": [1, 2]}, {"path": ["a"], "status": ["ok"]}])
def test_a_table_of_another_kind_is_named_and_stays(table: dict[str, Any]) -> None:
    pq.write_table(pa.table(table), SHARD)
    mine = SHARD.read_bytes()
    for use in (load_run, lambda _: run(ASKED)):
        with pytest.raises(
            InputError, match=r"out/shards/00000\.parquet is not a shard of a run: it does not have the column"
        ):
            use("out")
    assert SHARD.read_bytes() == mine


@pytest.mark.parametrize(
    "columns",
    [
        {"height": [10**6, 7]},
        {"heatmap": [b"", b"123"]},
        {"picture_height": [2**30, 2**30]},
        {"box": [[0.0, 0.0, 0.0, 0.0]] * 2},
        {"box": [[0.0, 0.0, float("nan"), 1.0]] * 2},
        {"height": pa.array(["a", "b"])},
    ],
)
def test_rows_that_make_no_sense_are_one_line(columns: dict[str, Any]) -> None:
    rewritten(**columns)
    with pytest.raises(GradCamKitError, match=r"a\.png|00000\.parquet"):
        export_run("out", "png", "pngs")


def test_rows_lead_nowhere_but_into_the_folder_of_an_export() -> None:
    rewritten(path=["../../../x/a.png", "/tmp/../b.png"], method=["../../grad-cam", "grad-cam"])
    export_run("out", "png", "deep/pngs")
    outside = [path for path in Path().rglob("*.png") if path.parts[0] not in ("pictures", "out", "deep")]
    assert (outside, len(list(Path("deep/pngs").rglob("*.png")))) == ([], 1)
    rewritten(method=["unknown", "unknown"])
    with pytest.raises(InputError, match="has the method 'unknown'"):
        load_run("out").heatmap(0)

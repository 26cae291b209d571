"""Rows of a run together with what was measured later."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import disk
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import cli
from evaluations import asking, report_of, rows_of, run_demo, write_samples

from gradcam_kit.jobs import load_run
from gradcam_kit.metrics import BASELINES


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def test_rows_of_a_run_have_what_was_measured_later() -> None:
    write_samples()
    run_demo("out", "--shard", "0/2", *asking("average-drop"))
    assert load_run("out").metrics == ["average-drop"]
    Path("pictures/1.png").write_text("no picture any more")
    cli("evaluate", "out", *asking("average-drop", "adcc-complexity"))
    run_demo("out", *asking("average-drop"))
    assert sorted(path.name for path in Path("out/shards").iterdir()) == ["00000.parquet", "00001.parquet"]
    stored, found = rows_of("out/shards"), load_run("out")
    measured = [row for row in rows_of("out/metrics") if row["method"] not in BASELINES]
    assert found.metrics == ["average-drop", "adcc-complexity"]
    assert [row["path"] for row in measured] == ["0.png", "0.png", "1.png", "1.png"]  # the other shard is not measured
    assert {row["adcc_complexity_status"] for row in measured} == {"ok", "error"}
    for row, own in zip(found, stored, strict=True):
        assert {name: row[name] for name in own if name != "error"} == {
            name: own[name] for name in own if name != "error"
        }
    assert [row["adcc_complexity"] for row in found] == [*(row["adcc_complexity"] for row in measured), None, None]
    assert [row["adcc_complexity_status"] for row in found] == ["ok", "ok", "error", "error", None, None]
    assert [row["status"] for row in found] == ["ok"] * 6  # the heatmaps are there
    assert ["cannot read the picture" in (row["error"] or "") for row in found] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert list(found.table(["error", "adcc_complexity", "path"]).column_names) == ["error", "adcc_complexity", "path"]
    assert found.table(["adcc_complexity"]).to_pylist() == [
        {"adcc_complexity": row["adcc_complexity"]} for row in found
    ]
    assert found.to_pandas(["path"]).path.tolist() == [row["path"] for row in stored]
    assert found.to_pandas().adcc_complexity.notna().tolist() == [True, True, False, False, False, False]
    assert found[0] == next(iter(found))
    cli("export", "out", "--to", "csv")
    with open("out/export/csv/rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["adcc_complexity_status"] for line in table] == ["ok", "ok", "error", "error", "", ""]
    assert float(table[0]["adcc_complexity"]) == pytest.approx(found[0]["adcc_complexity"])


def test_what_was_measured_again_stands_for_what_the_run_measured() -> None:
    """Also in the report: a number of the run that has been measured again is not shown."""
    write_samples(1)
    run_demo("out", *asking("average-drop"))
    cli("evaluate", "out", "--overwrite", "--no-baselines", *asking("average-drop"))
    path = Path("out/metrics/00000.parquet")
    table = pq.read_table(path)
    other = pa.array([75.0, 25.0], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("average_drop"), "average_drop", other), path)
    assert [row["average_drop"] for row in load_run("out")] == [75.0, 25.0]
    assert '>50<span class="n">, n = 2</span></td>' in report_of("out")


def test_what_was_measured_of_other_rows_is_not_joined() -> None:
    write_samples(2)
    run_demo("out")
    cli("evaluate", "out", *asking("sparseness"))
    path = Path("out/metrics/00000.parquet")
    measured = pq.read_table(path)
    for changed in (measured.slice(1), measured.slice(0, 3), measured.take([1, 0, 2, 3])):
        pq.write_table(changed.replace_schema_metadata(measured.schema.metadata), path)
        found = load_run("out")
        assert [row["sparseness"] for row in found] == [None] * 4
        assert found.means() == []
        assert "<td>" not in report_of("out").partition("<nav")[0]
    cli("evaluate", "out", *asking("sparseness"))
    assert pq.read_table(path).equals(measured)


@pytest.mark.parametrize("content", [b"", b"no parquet", None], ids=["empty", "damaged", "foreign"])
def test_a_file_of_metrics_that_cannot_be_read_hides_no_rows(content: bytes | None) -> None:
    write_samples()
    run_demo("out")
    cli("evaluate", "out", *asking("sparseness"))
    path = Path("out/metrics/00000.parquet")
    if content is None:
        pq.write_table(pa.table({"path": ["0.png"]}), path)
    else:
        path.write_bytes(content)
    found = load_run("out")
    assert [row["sparseness"] is None for row in found] == [True] * 4 + [False] * 2
    assert found.heatmap(0).shape == (128, 128)
    is_foreign = content is None  # a whole file of somebody's, which is replaced only if asked for
    assert cli("evaluate", "out", *asking("sparseness"))[0] == 2 * is_foreign
    assert cli("evaluate", "out", *asking("sparseness"), *["--overwrite"] * is_foreign)[0] == 0
    assert all(row["sparseness"] is not None for row in load_run("out"))


def test_errors_of_metrics_go_when_they_are_measured_again_and_others_stay() -> None:
    write_samples(2)
    run_demo("out", *asking("average-drop", "entropy"))
    path = Path("out/shards/00000.parquet")
    table = pq.read_table(path)

    def with_column(name: str, values: list[Any]) -> None:
        nonlocal table
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))

    with_column("error", ["the metrics cannot be computed", "the overlay cannot be written", "both", None])
    with_column("average_drop_status", ["error", "ok", "error", "ok"])
    with_column("entropy_status", ["ok", "ok", "error", "ok"])
    pq.write_table(table, path)
    cli("evaluate", "out", "--overwrite", "--no-baselines", *asking("average-drop"))
    found = load_run("out").to_pandas(["average_drop_status", "error"])
    assert found.average_drop_status.tolist() == ["ok"] * 4
    assert found.error.fillna("").tolist() == ["", "the overlay cannot be written", "both", ""]
    assert [row["error"] or "" for row in load_run("out")] == found.error.fillna("").tolist()

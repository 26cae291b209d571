"""Shards that are whole files with rows that no run writes are named, and made again by the same command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import disk
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.errors import InputError
from gradcam_kit.jobs import RunRequest, load_run, run
from gradcam_kit.jobs.export import FORMATS, export_run
from gradcam_kit.report import write_report

SHARD = "out/shards/00000.parquet"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain()


def explain() -> None:
    run(RunRequest("shop:net", source="pictures", out="out", workers=1, report=False))


def change(name: str, value: Any) -> None:
    table = pq.read_table(SHARD)
    place, field = table.schema.get_field_index(name), table.schema.field(name).with_nullable(True)
    values = pa.array([value] * table.num_rows, field.type)
    pq.write_table(table.set_column(place, field, values).replace_schema_metadata(table.schema.metadata), SHARD)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("path", None, "a row has no path"),
        ("status", "perhaps", "a status other than ok and error"),
        ("heatmap", b"1", "of 'a.png' has a heatmap whose bytes do not match its size in float16: heatmap of 1 bytes"),
        ("height", 0, "a heatmap whose bytes do not match its size"),
        ("width", None, "a heatmap whose bytes do not match its size"),
        ("box", None, "no box"),
        ("box", [5.0, 0, 1, 9], "no box"),
        ("box", [float("nan")] * 4, "no box"),
        ("rank", -1, "a rank below 0"),
        ("top_scores", None, "no best classes"),
        ("top_scores", [], "no best classes"),
    ],
)
def test_rows_that_no_run_writes(name: str, value: Any, says: str) -> None:
    before = load_run("out")[0]
    change(name, value)
    uses: Sequence[Callable[[], Any]] = [
        lambda: list(load_run("out")),
        lambda: write_report("out"),
        *(lambda to=to: export_run("out", to) for to in FORMATS),  # type: ignore[misc]
    ]
    for use in uses:
        with pytest.raises(InputError, match=r"shards/00000\.parquet is damaged") as caught:
            use()
        assert says in str(caught.value)
    assert not Path("out/export").exists()
    done = CliRunner().invoke(app, ["export", "out", "--to", "csv"])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    explain()  # as the error says
    assert load_run("out")[0] == before

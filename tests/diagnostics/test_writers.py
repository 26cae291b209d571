"""Writers: what they leave is read back by the readers of the services; names are cleaned; a failing one is dropped."""

from __future__ import annotations

import csv
import json
import logging
import math
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from trainings import batches, mlp

from gradcam_kit.diagnostics import (
    CsvWriter,
    JsonWriter,
    MLflowWriter,
    ModelDiagnostics,
    TensorBoardWriter,
    WandbWriter,
    Writer,
)
from gradcam_kit.diagnostics.maths.histogram import edges, histogram, ordered
from gradcam_kit.diagnostics.writers.protocol import clean_name, compact, picture_of
from gradcam_kit.errors import InputError, ShapeError

ODD = ("../../etc/passwd", "/", "", "_step", "a:b*?", "ä/ö", "=1+1", "x" * 500, "..", "con\n\0")
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
ROWS = [{"layer": "0", "value": 1.5, "shape": (2, 3)}, {"layer": "=1+1", "value": math.nan, "shape": None}]


def fill(writer: Any, names: tuple[Any, ...] = ("loss",)) -> None:
    for name in names:
        for step in (1, 2):
            writer.scalar(name, 0.5 * step, step)
            writer.histogram(name, [-1.0, 0.0, 1.0, 2.0], [0, 3, 1], step)
        writer.image(name, PICTURE, 2)
        writer.table(name, ROWS, 2)
    writer.close()


def test_names_are_clean() -> None:
    for name in ODD:
        clean = clean_name(name)
        assert clean
        assert len(clean) <= 120
        assert clean == clean_name(clean)
        assert not clean.startswith(("/", "_", "."))
        assert ".." not in clean.split("/")
    assert clean_name(7) == "7"
    assert clean_name("layer1.0/weight") == "layer1.0/weight"


def test_histograms_lose_empty_ends_and_no_counts() -> None:
    limits, counts = compact([0, 1, 2, 3, 4, 5], [0, 2, 0, 3, 0], 10)
    assert (limits.tolist(), counts.tolist()) == ([1, 2, 3, 4], [2, 0, 3])
    limits, counts = compact([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], 2)
    assert (limits.tolist(), counts.tolist()) == ([0, 3, 5], [6, 9])
    assert compact([0, 1], [0], 5)[1].sum() == 0
    x = torch.randn(999)
    limits, counts = compact(edges(), ordered(histogram(x).numpy()), 64)
    assert counts.sum() == 999
    assert len(counts) <= 64
    assert limits[0] <= x.min() <= x.max() <= limits[-1]
    with pytest.raises(ShapeError, match="2 edges and 2 counts"):
        compact([0, 1], [1, 1], 5)


def test_pictures_of_all_kinds() -> None:
    assert (picture_of(PICTURE) == PICTURE).all()
    assert picture_of(torch.ones(2, 5)).tolist() == np.full((2, 5, 3), 255).tolist()
    assert picture_of(np.zeros((2, 5, 4), np.float32)).shape == (2, 5, 3)
    with pytest.raises(ShapeError, match=r"\(3, 4, 5\)"):
        picture_of(np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize("kind", [CsvWriter, JsonWriter])
def test_files_stay_in_their_folder(kind: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "logs"
    writer = kind(folder)
    assert isinstance(writer, Writer)
    fill(writer, ODD)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["logs"]
    assert len(list((folder / "images").iterdir())) == len(ODD)  # no two names share a file
    picture = next((folder / "images").iterdir())
    with Image.open(picture) as opened:
        assert (np.array(opened) == PICTURE).all()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        kind(tmp_path / "file")


def test_csv_is_appended_and_no_text_is_a_formula(tmp_path: Path) -> None:
    fill(CsvWriter(tmp_path), ("=loss",))
    CsvWriter(tmp_path).scalar("later", math.nan, 3)
    with (tmp_path / "scalars.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [tuple(row.values()) for row in rows] == [("'=loss", "0.5", "1"), ("'=loss", "1.0", "2"), ("later", "", "3")]
    with (tmp_path / "histograms.csv").open(newline="") as stream:
        assert [row["count"] for row in csv.DictReader(stream)] == ["3", "1"] * 2
    table = next((tmp_path / "tables").iterdir()).read_text()
    assert "'=1+1," in table


def test_json_lines_are_strict(tmp_path: Path) -> None:
    fill(JsonWriter(tmp_path))
    JsonWriter(tmp_path).scalar("bad", math.inf, 3)
    refuse = pytest.fail
    lines = [
        json.loads(line, parse_constant=refuse) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()
    ]
    assert [line["kind"] for line in lines] == ["scalar", "histogram"] * 2 + ["image", "table", "scalar"]
    assert lines[1] == {"kind": "histogram", "name": "loss", "step": 1, "edges": [0, 1, 2], "counts": [3, 1]}
    assert lines[5]["rows"][1] == {"layer": "=1+1", "value": None, "shape": None}
    assert lines[6]["value"] is None
    assert (tmp_path / lines[4]["path"]).is_file()


def test_tensorboard_reads_its_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -e .[loggers]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = TensorBoardWriter(tmp_path / "own")
    assert isinstance(writer, Writer)
    fill(writer, ("loss", *ODD))
    events = EventAccumulator(str(tmp_path / "own"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]
    found = events.Histograms("loss")[0].histogram_value
    assert (found.min, found.max, found.num, found.sum) == (0, 2, 4, 3 * 0.5 + 1.5)
    assert (found.bucket_limit, found.bucket) == ([1, 2], [3, 1])
    assert (events.Images("loss")[0].width, events.Images("loss")[0].height) == (4, 4)
    text = events.Tensors("loss/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| layer | value | shape |" in text
    theirs = SummaryWriter(tmp_path / "theirs")
    fill(TensorBoardWriter(theirs))
    theirs.add_scalar("mine", 1.0, 1)  # still open
    theirs.close()
    with pytest.raises(InputError, match="dir_or_writer is an int"):
        TensorBoardWriter(3)


def test_mlflow_reads_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e .[loggers]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # versions 3 ask for it
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "store").as_uri())
    run = client.create_run(client.create_experiment("e"))
    writer = MLflowWriter(run, client)
    assert isinstance(writer, Writer)
    fill(writer, ("loss", *ODD))
    key = run.info.run_id
    assert [(one.step, one.value) for one in client.get_metric_history(key, "loss")] == [(1, 0.5), (2, 1.0)]
    tables = [one.path for one in client.list_artifacts(key, "tables")]
    assert "tables/loss-00000002.json" in tables
    assert len(tables) == 1 + len(ODD)
    assert len(client.list_artifacts(key, "histograms")) == 2 * len(tables)
    assert any("loss" in one.path for one in client.list_artifacts(key, "images"))
    assert client.get_run(key).info.status == "RUNNING"  # the run is the user's, who ends it
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(InputError, match="never starts a run"):
        MLflowWriter(None)


def wandb_rows(folder: Path) -> list[dict[str, Any]] | None:
    """The rows of an offline run, None before it is whole: blocks of 32 KiB, records with checksum, size, type."""
    from wandb.proto import wandb_internal_pb2

    raw, at, record, rows, is_whole = next(folder.rglob("*.wandb")).read_bytes(), 7, b"", [], False
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        record += raw[at + 7 : at + 7 + size]
        at += 7 + size
        print(kind, size)
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record.FromString(record)
            record = b""
            is_whole = is_whole or message.WhichOneof("record_type") == "exit"
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                rows.append({one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items})
    return rows if is_whole else None


def test_wandb_reads_its_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install -e .[loggers]")
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    assert wandb.run is None
    with pytest.raises(InputError, match="never starts one"):
        WandbWriter(wandb.run)
    run = wandb.init(
        mode="offline", dir=str(tmp_path), project="p", settings=wandb.Settings(console="off", silent=True)
    )
    writer = WandbWriter(run)
    assert isinstance(writer, Writer)
    writer.scalar("loss", 0.5, 50)
    writer.scalar("_step", 0.7, 50)
    writer.scalar("loss", 0.25, 100)  # nobody else ended the row of step 50
    run.log({"mine": 1}, step=7)
    run.log({"mine": 2}, step=8)
    fill(writer, ("film",))
    run.log({"mine": 3}, step=20)
    run.finish()
    for _ in range(600):  # another process writes the file, and `finish` does not wait for it
        if (rows := wandb_rows(tmp_path)) is not None:
            break
        time.sleep(0.1)
    assert rows is not None
    assert [(row["diagnostics_step"], row["loss"]) for row in rows if "loss" in row] == [(50, 0.5), (100, 0.25)]
    assert rows[0]["step"] == 0.7  # names that begin with "_" belong to the service
    assert [row["mine"] for row in rows if "mine" in row] == [1, 2, 3]
    assert [row["film/_type"] for row in rows if "film/_type" in row][-1] == "table-file"


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def scalar(self, name: str, value: float, step: int) -> None:
        self.calls += 1
        if self.calls > 3:
            raise OSError("no space left on device")


def run(writer: Any, steps: int = 23) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(mlp(), nn.Dropout(0.2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    block = ModelDiagnostics(model, optimizer=optimizer, window=5, writer=writer) if writer is not None else None
    if block:
        block.start()
    for inputs, labels in batches(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if block:
        block.stop()
    return losses, model.state_dict(), torch.get_rng_state()


def test_a_failing_writer_is_dropped_and_the_training_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    with caplog.at_level(logging.WARNING, "gradcam_kit"):
        watched = run([broken, JsonWriter(tmp_path), CsvWriter(tmp_path)])
    plain = run(None)
    assert watched[0] == plain[0]
    assert all(torch.equal(watched[1][name], plain[1][name]) for name in plain[1])
    assert torch.equal(watched[2], plain[2])
    assert broken.calls == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the writer Broken failed and is dropped: OSError: no space left on device"
    ]
    lines = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["name"] == "0.0/mean"]
    assert steps == [5, 10, 15, 20, 23]  # the window that is open at the end counts too
    counts = [sum(line["counts"]) for line in lines if line["kind"] == "histogram" and line["name"] == "0.0"]
    assert counts == [5 * 1024] * 4 + [3 * 1024]  # of the window, and not of everything before
    assert {line["name"] for line in lines if line["kind"] == "table"} == {"findings", "layers", "parameters"}
    assert any(line["name"].endswith("/update_ratio") for line in lines)


def test_what_is_no_writer_is_refused() -> None:
    with pytest.raises(InputError, match=r"writer is a str; expected an object with scalar"):
        ModelDiagnostics(mlp(), writer="logs")

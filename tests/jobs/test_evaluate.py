"""Metrics of runs, at once and later: the same numbers, in tables that say what they mean."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest
import torch
from commands import cli
from evaluations import asking, report_of, rows_of, run_demo, table_of, write_samples
from PIL import Image

from gradcam_kit.capture import rescoring
from gradcam_kit.errors import OptionError
from gradcam_kit.jobs import EvaluateRequest, RunRequest, evaluate, load_run, run
from gradcam_kit.metrics import BASELINES, METRICS, MetricInput, paired_differences, rank_agreement
from gradcam_kit.models import load_model

SMALL = ("--image-size", "64")
"""A quarter of the pixels, for metrics that make many passes."""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        (("grad-cam", "layer-cam"), ("average-drop", "coherency")),
        (("grad-cam",), ("infidelity",)),  # draws at random, in many passes
    ],
)
def test_measured_at_once_or_later_the_numbers_are_the_same(methods: tuple[str, ...], names: tuple[str, ...]) -> None:
    write_samples(2)
    asked = (*(word for name in methods for word in ("--method", name)), *SMALL)
    assert run_demo("once", *asked, *asking(*names))[0] == 0
    assert run_demo("later", *asked)[0] == 0
    status, said, _ = cli("evaluate", "later", *asking(*names), "--batch-size", "1", "--no-baselines")
    assert (status, "2 of 2 pictures measured in" in said) == (0, True)
    once, later = rows_of("once/shards"), [row for row in rows_of("later/metrics") if row["method"] not in BASELINES]
    key = ("path", "method", "rank", "target", "status")
    assert [[row[name] for name in key] for row in once] == [[row[name] for name in key] for row in later]
    assert len(once) == 2 * 2 * len(methods)
    for name in (name.replace("-", "_") for name in names):
        assert {row[f"{name}_status"] for row in (*once, *later)} == {"ok"}
        np.testing.assert_allclose([row[name] for row in once], [row[name] for row in later], rtol=1e-3, atol=1e-5)
        assert len({row[name] for row in once}) > 2  # not one number for all
        assert list(load_run("once").to_pandas()[name]) == [row[name] for row in once]


def test_the_columns_are_what_the_library_measures() -> None:
    write_samples()
    run_demo("out", *asking("average-drop"))
    found, loaded = load_run("out"), load_model("demo")
    places = range(len(found))
    images = torch.stack([loaded.transform(found.picture(i)) for i in places])
    maps = torch.from_numpy(np.stack([found.heatmap(i) for i in places]))
    classes = torch.tensor([found[i]["target"] for i in places])
    with rescoring(loaded.model, images, classes) as rescore:
        expected = METRICS["average-drop"](MetricInput(maps, images, rescore))
    assert ((expected.values > 0.1) & (expected.values < 99)).any()  # some are at neither end, where all maps are alike
    np.testing.assert_allclose([found[i]["average_drop"] for i in places], expected.values, rtol=1e-3, atol=1e-3)


def test_the_table_has_means_counts_and_statuses() -> None:
    write_samples()
    Image.fromarray(disk.BLACK).save("pictures/black.png")
    run_demo("out", "--method", "grad-cam", "--targets", "3")
    shards = {path: path.read_bytes() for path in Path("out/shards").iterdir()}
    status, said, _ = cli("evaluate", "out", "--no-baselines")
    assert status == 0
    assert {path: path.read_bytes() for path in Path("out/shards").iterdir()} == shards
    rows = rows_of("out/metrics")
    counted = [row["average_drop"] for row in rows if row["average_drop_status"] == "ok"]
    flat = sum(row["average_drop_status"] == "degenerate_map" for row in rows)
    assert len(counted) + flat == 4
    assert "\naverage-drop: lower is better, score ClassProbability, classes given, masking image * map" in said
    head, row = table_of(said)
    assert head[:2] == ["method", "average-drop (count)"]
    assert row[:2] == ["grad-cam", f"{np.mean(counted):.4g} ({len(counted)})"]
    page = report_of("out")
    assert f'{np.mean(counted):.4g}<span class="n">, n = {len(counted)}<' in page
    assert "<p>average-drop: lower is better, score ClassProbability" in page


def test_only_what_is_missing_is_measured() -> None:
    write_samples()
    run_demo("out", *asking("average-drop"))
    said = cli("evaluate", "out", "--no-baselines", *asking("average-drop"))[1]
    assert said.count("(3 of them before)") == 1  # by the run
    cli("evaluate", "out", *asking("sparseness"))
    files = {path: path.stat().st_mtime_ns for path in sorted(Path("out/metrics").iterdir())}
    assert [path.name for path in files] == ["00000.parquet", "00001.parquet"]
    before = rows_of("out/metrics")
    Path("out/metrics/00001.parquet").unlink()
    assert "(2 of them before)" in cli("evaluate", "out", *asking("sparseness"))[1]
    assert rows_of("out/metrics") == before
    assert [path.stat().st_mtime_ns == time for path, time in files.items()] == [True, False]
    cli("evaluate", "out", *asking("entropy"))
    assert [{**row, "entropy": None, "entropy_status": None} for row in rows_of("out/metrics")] == [
        {**row, "entropy": None, "entropy_status": None} for row in before
    ]
    run_demo("out", "--overwrite")
    assert not Path("out/metrics").exists()


def test_baselines_are_measured_on_the_same_pictures() -> None:
    write_samples()
    names = ("average-drop", "coherency")
    run_demo("out", "--method", "grad-cam", *SMALL, *asking("average-drop"))
    assert cli("evaluate", "out", "--no-baselines", *asking(*names))[0] == 0
    before = rows_of("out/metrics")
    assert {row["method"] for row in before} == {"grad-cam"}
    status, said, _ = cli("evaluate", "out", "--batch-size", "2", *asking(*names))
    assert status == 0
    rows = rows_of("out/metrics")
    assert [row for row in rows if row["method"] == "grad-cam"] == before  # nothing of them is measured again
    assert Counter(row["method"] for row in rows) == dict.fromkeys(("grad-cam", *BASELINES), 6)
    head, *shown = table_of(said.partition("rank agreement")[0])
    assert head == ["method", *(f"{name} (count)" for name in names)]
    assert [line[0] for line in shown] == ["grad-cam", *BASELINES]
    [ones] = (line for line in shown if line[0] == "ones")
    assert ones[1] == "0 (0)"  # what the formula gives; as the map is constant, it counts nowhere
    assert "not counted in average-drop, coherency: 6 with status degenerate_map (ones)" in said
    assert load_run("out").means() == evaluate(EvaluateRequest("out", names)).means

    found, loaded = load_run("out"), load_model("demo", image_size=64)
    images = torch.stack([loaded.transform(found.picture(i)) for i in range(len(found))])
    classes = torch.tensor([found[i]["target"] for i in range(len(found))])
    for name in ("center", "edges"):
        own = [row for row in rows if row["method"] == name]
        assert [(row["path"], row["rank"], row["target"]) for row in own] == [
            (row["path"], row["rank"], row["target"]) for row in found
        ]
        with rescoring(loaded.model, images, classes) as rescore:
            expected = METRICS["average-drop"](MetricInput(BASELINES[name](images), images, rescore))
        np.testing.assert_allclose([row["average_drop"] for row in own], expected.values, rtol=1e-3, atol=1e-3)
    assert "(3 of them before)" in cli("evaluate", "out", *asking(*names))[1]
    assert rows_of("out/metrics") == rows
    assert "center" not in cli("evaluate", "out", "--no-baselines", *asking(*names))[1]
    _, said, warned = cli("evaluate", "out", "--no-controls", *asking(*names))
    assert "center" not in said
    assert "--no-controls are now called --baselines and --no-baselines" in warned
    assert "center" in report_of("out")


def test_differences_and_agreement_of_metrics_are_those_of_the_rows() -> None:
    write_samples()
    names = ("sparseness", "entropy")
    run_demo("out", "--method", "grad-cam", "--method", "layer-cam", *SMALL)
    status, said, _ = cli("evaluate", "out", *asking(*names))
    assert status == 0
    rows = rows_of("out/metrics")
    values: dict[str, dict[str, list[float]]] = {}
    for name in names:
        for row in rows:
            if row[f"{name}_status"] == "ok":
                values.setdefault(name, {}).setdefault(row["method"], []).append(row[name])
    # Two targets of each picture stand one after the other.
    means = {
        name: {key: np.array(one).reshape(-1, 2).mean(1) for key, one in own.items()} for name, own in values.items()
    }
    for name, own in means.items():
        for other in ("layer-cam", "random", "edges"):
            [found] = paired_differences(own, [("grad-cam", other)], draws=10)
            assert f"{name}: grad-cam - {other} = {found.difference:.3g} [" in said
        assert f"{name}: random = {own['random'].mean():.3g} [" in said
        assert "], mean over 5 draws and 3 images" in said
    labels = ["grad-cam", "layer-cam", "random", "center", "edges"]
    tables = {name: torch.from_numpy(np.stack([own[label] for label in labels])) for name, own in means.items()}
    expected = rank_agreement(tables, ["entropy"])
    shown = said[said.index("rank agreement of metrics") :]
    assert table_of(shown) == [
        ["metric", *names, "reliability"],
        *(
            [
                name,
                *(f"{one:.2f}" for one in (*expected.consistency[place].tolist(), float(expected.reliability[place]))),
            ]
            for place, name in enumerate(names)
        ),
    ]
    assert "rank agreement" not in cli("evaluate", "out", *asking("entropy"))[1], "one metric has none to agree with"
    assert "rank agreement" not in cli("evaluate", "out", "--no-baselines", *asking(*names))[1], (
        "two methods are too few"
    )


def test_a_run_that_measures_says_its_means() -> None:
    write_samples()
    _, said, _ = run_demo("out", *asking("average-drop", "sparseness"))
    rows = rows_of("out/shards")
    head, row = table_of(said)
    assert head == ["method", "average-drop (count)", "sparseness (count)"]
    expected = [f"{np.mean([row[name] for row in rows]):.4g} (6)" for name in ("average_drop", "sparseness")]
    assert row == ["grad-cam", *expected]
    assert "average-drop: lower is better, score ClassProbability, classes top 2" in said
    assert table_of(run_demo("out", *asking("average-drop", "sparseness"))[1]) == [head, row]  # also if nothing is left
    assert not table_of(run_demo("plain")[1])
    cli("evaluate", "out", "--no-baselines", *asking("entropy"))
    _, said, _ = run_demo("out", *asking("average-drop", "sparseness"))
    assert table_of(said)[0][-1] == "entropy (count)"
    assert "\nentropy: lower is better" in said


def test_a_sheet_that_measures_says_its_means() -> None:
    write_samples()
    options = ("--method", "grad-cam", "--method", "edges", "--batch-size", "2", *asking("average-drop"))
    _, said, _ = cli("compare", "pictures", "--model", "demo", "--out", "all.png", *options)
    cli("compare", "pictures", "--model", "demo", "--out", "all.csv", *options)
    with open("all.csv", newline="") as file:
        numbers = [float(row["average-drop"]) for row in csv.DictReader(file) if row["method"] == "grad-cam"]
    head, *shown = table_of(said)
    assert head == ["method", "average-drop (count)"]
    assert [line[0] for line in shown] == ["grad-cam", "edges", "random", "ones", "center"]
    assert shown[0][1] == f"{np.mean(numbers):.4g} (3)"
    assert "average-drop: lower is better, score ClassProbability" in said


def test_every_metric_is_listed() -> None:
    lines = {line[0]: line[1:] for line in table_of(cli("metrics")[1])[1:]}
    assert sorted(lines) == list(lines) == sorted(METRICS)
    assert lines["pointing-game"][:2] == ["higher", "masks"]
    assert lines["arcc"][:3] == ["higher", "the model, the method", "8 F + E"]
    assert "arxiv.org" in lines["adcc"][3]


def test_what_is_made_of_a_part_of_a_run_says_so() -> None:
    write_samples()
    run_demo("out", "--shard", "0/2")
    for command in (("evaluate", *asking("sparseness")), ("report",), ("export", "--to", "csv")):
        status, _, notes = cli(command[0], "out", *command[1:])
        assert (status, notes.count("not finished: 1 of 3 pictures are left")) == (0, 1)
    run_demo("out")
    assert "not finished" not in cli("report", "out")[2]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_failure_is_one_line_whatever_its_picture_is_called() -> None:
    write_samples()
    Path("pictures/a\nfailed: all\x1b[2J.png").write_text("no picture")
    problems = run_demo("out")[2]
    assert problems.count("failed: a\\nfailed: all\\x1b[2J.png: cannot read the picture") == 1
    assert problems.count("\nfailed: ") == 1


def test_pictures_that_vanished_or_changed_become_rows_that_say_so() -> None:
    write_samples()
    Path("pictures/broken.png").write_text("no picture")
    assert run_demo("out", *asking("sparseness"))[0] == 1
    broken = next(row for row in rows_of("out/shards") if row["path"] == "broken.png")
    assert (broken["sparseness"], broken["sparseness_status"]) == (None, "error")
    Path("pictures/0.png").unlink()
    Image.fromarray(disk.CAT).save("pictures/1.png")
    status, said, problems = cli("evaluate", "out", *asking("average-drop"))
    assert (status, "1 of 4 pictures measured" in said, "failed: 0.png" in problems) == (1, True, True)
    everything = rows_of("out/metrics")
    rows = {row["path"]: row for row in everything if row["method"] not in BASELINES}
    baselines = {(row["path"], row["status"], row["error"]) for row in everything if row["method"] in BASELINES}
    assert baselines == {(path, row["status"], row["error"]) for path, row in rows.items() if path != "broken.png"}
    assert {path: row["status"] for path, row in rows.items()} == {
        "0.png": "error", "1.png": "error", "2.png": "ok", "broken.png": "error"
    }  # fmt: skip
    assert "No such file" in rows["0.png"]["error"]
    assert f"is {disk.CAT.shape[1]} x {disk.CAT.shape[0]} now" in rows["1.png"]["error"]
    assert rows["0.png"]["average_drop_status"] == "error"
    assert rows["2.png"]["average_drop"] is not None


def test_metrics_are_part_of_what_a_run_is() -> None:
    write_samples(2)
    run_demo("out", *SMALL, *asking("infidelity"))
    settings = json.loads(Path("out/run.json").read_text())["metrics"]["infidelity"]
    assert (settings["samples"], settings["seed"], settings["score"]) == (64, 0, "ClassProbability")
    assert settings["classes"] == "top 2"
    status, _, problem = run_demo("out", *SMALL)
    assert (status, "different metrics" in problem) == (2, True)


@pytest.mark.parametrize("command", [("run", "pictures", "--model", "demo", "--out", "new"), ("evaluate", "out")])
def test_metrics_that_need_masks_are_refused(command: tuple[str, ...]) -> None:
    write_samples(1)
    run_demo("out")
    status, _, problem = cli(*command, *asking("pointing-game"))
    assert (status, "needs masks" in problem, "average-drop, " in problem) == (2, True, True)
    status, _, problem = cli(*command, *asking("average-dorp"))
    assert (status, "'average-drop'" in problem) == (2, True)
    assert not Path("new").exists()


def test_another_model_is_refused() -> None:
    write_samples(1)
    options = {"source": "pictures", "overlays": 0, "report": False}
    model = load_model("demo").model
    run(RunRequest(model=model, out="module", transform=load_model("demo").transform, **options))
    with pytest.raises(OptionError, match="has a module as its model"):
        evaluate(EvaluateRequest("module"))
    again = EvaluateRequest("module", metrics=("entropy",), model=model, transform=load_model("demo").transform)
    assert evaluate(again).means[0]["count"] == 1
    torch.save(load_model("demo").model.state_dict(), "weights.pt")
    cli("run", "pictures", "--model", "demo", "--checkpoint", "weights.pt", "--out", "out", "--overlays", "none")
    torch.save({name: value * 1.1 for name, value in torch.load("weights.pt").items()}, "weights.pt")
    status, _, problem = cli("evaluate", "out")
    assert (status, "the weights_sha256 of" in problem) == (2, True)
    torch.save(load_model("demo").model.state_dict(), "moved.pt")
    assert cli("evaluate", "out", "--checkpoint", "moved.pt")[0] == 0


def test_a_metric_that_fails_costs_no_heatmap(monkeypatch: pytest.MonkeyPatch) -> None:
    write_samples()
    whole, calls = METRICS["entropy"].function, []

    def failing(heatmaps: torch.Tensor) -> Any:
        calls.append(len(heatmaps))
        if len(calls) > 1:  # the first call asks for the settings
            raise RuntimeError("no luck")
        return whole(heatmaps)

    monkeypatch.setitem(METRICS, "entropy", type(METRICS["entropy"])("entropy", failing, "", "", ""))
    status, _, problems = run_demo("out", *asking("entropy"))
    assert (status, "the metrics cannot be computed: no luck" in problems) == (1, True)
    assert {(row["status"], row["entropy_status"], row["height"]) for row in rows_of("out/shards")} == {
        ("ok", "error", 16)
    }

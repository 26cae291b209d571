"""The benchmarks run, store what they measure, and say why they skip what they skip."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import results, waiting
from benchmarks.__main__ import app
from benchmarks.balanced import RESNET, VIT
from benchmarks.cuda import ALONE
from benchmarks.results import RESULTS, Results, Row, load


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def quick(name: str, folder: Path) -> Results:
    command(name, "--quick", *(() if name == "cuda" else ("--threads", "1")), "--out", str(folder / f"{name}-cpu.json"))
    return load(folder / f"{name}-cpu.json")


def one(rows: list[Row]) -> Row:
    [row] = rows
    return row


@pytest.mark.long
def test_methods(tmp_path):
    results = quick("methods", tmp_path)
    plain = one(results.where(method="plain forward", what="memory"))
    cam = one([row for row in results.where(method="grad-cam") if "what" not in row.case])
    assert set(cam.figures) == {"seconds_per_image", "ratio", "passes"}
    assert 1 <= cam.figures["passes"].median < 1.1
    skipped = [row.skipped for row in results.rows if row.case["method"] == "attention-rollout"]
    assert all("no attention" in text for text in skipped)
    assert len(skipped) == 2
    if sys.platform.startswith("linux"):
        assert one(results.where(method="grad-cam", what="memory")).figures["peak_mb"].median > 0
        assert plain.figures["peak_mb"].median > 0
    seen = results.environment
    assert seen["seed"] == 0
    assert {"processor", "cores", "threads", "python", "versions", "commit"} <= set(seen)
    assert seen["versions"]["torch"] == torch.__version__.partition("+")[0] or seen["versions"]["torch"]


@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_peers(tmp_path):
    results = quick("peers", tmp_path)
    assert {row.case["peer"] for row in results.rows} == {"pytorch-grad-cam", "torch-cam", "captum"}
    for row in results.rows:
        if row.skipped:
            assert "pip install" in row.skipped
            continue
        assert row.figures["ratio"].median > 0
        assert row.figures["difference"].median < 1e-3, row
        assert row.figures["difference_earlier"].median < 1e-5, row


def test_a_peer_that_is_not_installed_is_skipped_with_what_to_do(tmp_path, monkeypatch):
    for module in ("pytorch_grad_cam", "torchcam.methods", "captum.attr"):
        monkeypatch.setitem(sys.modules, module, None)
    results = quick("peers", tmp_path)
    assert results.rows
    assert all("is not installed: pip install -e '.[peers]'" in row.skipped for row in results.rows)


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("hidden", [(), ("quantus", "pytorch_grad_cam.metrics.road")])
def test_metrics_and_those_of_other_libraries(tmp_path, monkeypatch, hidden):
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    results = quick("metrics", tmp_path)
    assert {row.case["work"] for row in results.rows} >= {"deletion + insertion", "ROAD, both orders"}
    theirs = [row for row in results.rows if row.case["work"].startswith(("Quantus", "pytorch-grad-cam"))]
    assert len(theirs) == 3
    for row in results.rows:
        assert row.skipped or row.figures["ratio"].median > 0
        assert not row.skipped or row in theirs
    if hidden:
        assert all("is not installed: pip install -e '.[peers]'" in row.skipped for row in theirs)


def test_core(tmp_path):
    results = quick("core", tmp_path)
    works = {row.case["work"] for row in results.rows}
    assert works >= {"weighted sum by channel", "normalize heatmaps", "upsample", "overlays"}
    for row in results.rows:
        assert row.figures["ratio"].median > 0
        moved = row.figures["gb_per_s"].median * row.figures["microseconds"].median
        copied = row.figures["copy_gb_per_s"].median * row.figures["microseconds"].median / row.figures["ratio"].median
        assert moved == pytest.approx(copied, rel=1e-6)  # both move the same bytes


def test_quality(tmp_path):
    results = quick("quality", tmp_path)
    cam, random = (one(results.where(method=name)).figures["energy"] for name in ("grad-cam", "random-cam"))
    assert cam.median > random.median
    curve = results.where(what="score-cam")
    assert {row.case["rule"] for row in curve} >= {"std", "gradient"}
    assert all(row.figures["passes"].median < 12 for row in curve)  # 10 of 96 channels, not all


def test_ratios(tmp_path):
    results = quick("ratios", tmp_path)
    ten = one(results.where(work="ten gradient methods, explain_all"))
    assert ten.figures["passes"].median < 1.2  # one pass for all
    assert not [row for row in results.rows if row.skipped]


def test_balanced(tmp_path):
    results = quick("balanced", tmp_path)
    assert not [row for row in results.rows if row.skipped]
    passes = {(row.case["model"], row.case["work"]): row.figures["passes"].median for row in results.rows}
    # Both go backward once through the whole model, and through the head alone behind a network's last stage.
    assert passes[VIT, "BalancedCAM"] == pytest.approx(
        passes[VIT, "HiResCAM, patch embedding, exact gradients"], rel=0.05
    )
    assert passes[VIT, "BalancedCAM"] > 1.5
    assert passes[RESNET, "BalancedCAM, layer4"] == pytest.approx(passes[RESNET, "HiResCAM, layer4"], rel=1e-6)
    assert passes[RESNET, "BalancedCAM, layer4"] < 1.05
    assert {row.beside for row in results.rows} == {"", "plain forward of 1 images of 64²"}


def test_what_is_stored_of_balanced_gradients_is_what_the_documentation_says():
    stored = load(RESULTS / "balanced-cpu.json")
    ratio = {(row.case["model"], row.case["work"]): row.figures["ratio"].median for row in stored.rows}
    assert ratio[VIT, "BalancedCAM"] <= 3.2, "of a plain forward pass"
    assert ratio[VIT, "BalancedCAM"] <= 1.4 * ratio[VIT, "HiResCAM, patch embedding, exact gradients"]
    assert ratio[RESNET, "BalancedCAM, layer4"] <= 1.1 * ratio[RESNET, "HiResCAM, layer4"]


def test_tricks(tmp_path):
    results = quick("tricks", tmp_path)
    assert [row.case["work"].partition(",")[0] for row in results.rows] == [
        "packed weights",
        "channels-last images",
        "rows copied when they are read",
    ]
    assert all(row.figures["ratio"].median > 0 for row in results.rows)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="processes are stopped and continued by signals")
def test_waiting(tmp_path):
    results = quick("waiting", tmp_path)
    first, *others = results.rows
    assert {row.case["situation"] for row in others} == {waiting.ALONE, waiting.BESIDE}
    assert len(results.rows) == 6
    assert (first.figures["ratio"].median, first.beside) == (1, "")
    for row in others:
        assert row.beside == waiting.FIRST
        seconds = row.figures["seconds"].median
        assert row.figures["ratio"].median == pytest.approx(seconds / first.figures["seconds"].median)


@pytest.mark.filterwarnings("ignore")  # of anomaly mode and other libraries
@pytest.mark.long
def test_diagnostics(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    results = quick("diagnostics", tmp_path)
    works = {row.case["work"] for row in results.rows}
    assert works >= {"ModelDiagnostics, all leaves", "find_nonfinite", "anomaly mode", "wandb.watch, log=all"}
    for row in results.rows:
        if row.case["work"].startswith("memory"):
            assert 0 < row.figures["kib_per_layer"].median <= 64
        elif row.skipped:
            assert "is not installed: pip install" in row.skipped, row
        else:
            assert row.figures["ratio"].median > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "methods", "peers", "core", "quality", "ratios", "balanced"])
def test_without_a_gpu_the_cases_for_one_are_skipped(tmp_path, monkeypatch, name):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    device = () if name == "cuda" else ("--device", "cuda")
    assert "skipped: no CUDA device is available" in command(name, *device)
    assert not list(tmp_path.iterdir())  # stored results stay
    command(name, "--quick", *device, "--out", str(tmp_path / "out.json"))
    [row] = load(tmp_path / "out.json").rows
    assert row.skipped == "no CUDA device is available"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tmp_path):
    results = quick("cuda", tmp_path)
    assert one(results.where(work=f"grad-cam {ALONE}")).figures["share"].median == 1


@pytest.mark.parametrize(
    "arguments",
    [("--model", "resnet_18"), ("--method", "gradcam"), ("--dtype", "int8"), ("--device", "tpu")],
)
def test_what_does_not_exist_is_refused_with_what_does(arguments):
    done = CliRunner().invoke(app, ["methods", *arguments])
    assert done.exit_code == 2
    assert arguments[1] in done.output


def test_what_is_stored_of_waiting_is_what_the_documentation_says():
    rows = load(RESULTS / "waiting-cpu.json").rows
    said = (RESULTS.parents[1] / "docs/cost.md").read_text()
    spin, passive = ("torch's own: spin, then sleep", "OMP_WAIT_POLICY=passive: sleep")
    for situation, policy, text in [
        (waiting.ALONE, passive, "takes {:.2f} times as long with `passive` if"),
        (waiting.BESIDE, passive, "busy process it takes {:.2f} times as long"),
        (waiting.BESIDE, spin, "and {:.2f} times if threads spin"),
    ]:
        row = one([row for row in rows if (row.case["situation"], row.case["waiting"]) == (situation, policy)])
        assert text.format(row.figures["ratio"].median) in said

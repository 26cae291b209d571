"""Runs as a user types them: what they do, say and exit with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import disk
import forked
import numpy as np
import pytest
from commands import cli

from gradcam_kit.functional import normalize
from gradcam_kit.methods import METHODS
from gradcam_kit.models import load_model
from gradcam_kit.pixels.decoding import read_picture


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    return forked.run(forked.MAIN, *arguments, preload=forked.COMMAND, check=False)


@pytest.mark.parametrize(
    ("model", "layer"),
    [("demo", "layer4"), ("torchvision:resnet18", "layer4"), ("timm:test_vit.r160_in1k", None), ("shop:net", "stage2")],
)
def test_a_run_with_each_kind_of_model(model: str, layer: str | None) -> None:
    disk.write_picture(Path("pictures/one/a.jpg"), disk.COFFEE)
    disk.write_picture(Path("pictures/two/a.jpg"), disk.CAT)
    methods = ("grad-cam", "layer-cam")
    status, said, notes = cli(
        *("run", "pictures", "--model", model, "--out", "out", "--targets", "1", "--workers", "1"),
        *(word for method in methods for word in ("--method", method)),
    )
    assert (status, "2 of 2 pictures explained in" in said) == (0, True)
    assert "note: pictures are prepared by" in notes
    loaded = load_model(model)
    rows = disk.read_rows(Path("out"))
    assert [(row["path"], row["method"]) for row in rows] == [
        (f"{folder}/a.jpg", method) for folder in ("one", "two") for method in methods
    ]
    for row in rows:
        assert layer is None or row["layer"] == layer
        image = loaded.transform(read_picture(Path("pictures", row["path"])))[None]
        explanation = METHODS[row["method"]](loaded.model, row["layer"]).explain(image, 1)
        expected = normalize(explanation.saliency[row["layer"]].clamp(min=0))[0].numpy()
        assert np.abs(row["heatmap"] - expected).max() < 5e-3
        assert row["score"] == pytest.approx(float(loaded.model(image).softmax(1)[0, 1].detach()), abs=1e-4)
        assert Path("out/overlays", f"{row['path']}.{row['method']}.jpg").exists()


def test_some_pictures_that_fail_make_status_1_and_are_named() -> None:
    disk.write_pictures(Path("pictures"))
    disk.break_pictures(Path("pictures"))
    status, said, problems = cli("run", "pictures", "--model", "shop:net", "--out", "out", "--overlays", "none")
    assert status == 1
    assert "7 of 11 pictures explained" in said
    assert "failed: text.jpg: cannot read the picture" in problems
    assert len(disk.read_rows(Path("out"))) == 11


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing", "--model", "shop:net", "--out", "out"], "no file or folder 'nothing'"),
        (["run", "pictures", "--model", "shop:nett", "--out", "out"], "has no factory 'nett'; did you mean 'net'"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--method", "gradcam"], "did you mean 'grad-cam'"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--layer", "stage"], "no layer 'stage'; did you"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--targets", "9"], "class 9 for a model with 3"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--overlays", "some"], "expected all, none or a"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--mean", "a,b,c"], "--mean is 'a,b,c'; expected"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--checkpoint", "x.pt"], "no checkpoint file x.pt"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--dtype", "int8"], "the dtype is 'int8'"),
        (["run", "pictures", "--model", "shop:net", "--out", "shop.py"], "'shop.py' is a file"),
        (["run", "pictures", "--model", "shop:net", "--out", "pictures"], "--out is SOURCE itself"),
        (
            ["run", "pictures", "--model", "shop:net", "--out", "out", "--mean", "3,0,0"],
            "--mean is 3,0,0; expected three",
        ),
        (
            ["run", "pictures", "--model", "shop:net", "--out", "out", "--std", "0,1,1"],
            "--std is 0,1,1; expected three",
        ),
        (["run", "pictures", "--model", "shop:value", "--out", "out"], "shop:value is a tuple, not a factory"),
        (
            ["run", "pictures", "--model", "shop:net", "--out", "out", "--class-names", "two.txt"],
            "the number of class names, 2, differs from the number of outputs of shop",
        ),
        (
            ["run", "pictures", "--model", "shop:net", "--out", "out", "--shard", "2/2"],
            "the shard is 2/2; expected I/N",
        ),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--shard", "x"], "the shard is 'x'; expected I/N"),
        (["run", "pictures", "--model", "shop:net", "--out", "out", "--engine", "dask"], "the engine is 'dask'"),
        (
            ["run", "pictures", "--model", "shop:net", "--out", "out", "--method", "shop:Faulty"],
            "Faulty failed, although the model itself succeeded: AttributeError: 'LayerCapture' object has no",
        ),
        (
            [
                *("run", "pictures", "--model", "shop:net", "--out", "out", "--method", "grad-cam"),
                *("--method", "shop:Faulty", "--layer", "stage1"),
            ],
            "Faulty failed, although",
        ),
        (
            ["run", "pictures", "--model", "shop:net", "--out", "out", "--method", "shop:Greedy"],
            "shop:Greedy(model, layers, batch_size=32) fails: TypeError:",
        ),
        (
            ["run", "pictures", "--model", "shop:crooked", "--out", "out"],
            "the transform of shop:crooked fails on all of the first pictures: AttributeError: 'numpy.ndarray' object",
        ),
        (["report", "nothing"], "'nothing' holds no run"),
        (["export", "nothing", "--to", "csv"], "'nothing' holds no run"),
        (["compare", "nothing", "--model", "shop:net", "--out", "s.png"], "no file or folder 'nothing'"),
        (["compare", "pictures", "--model", "shop:net", "--out", "s.what"], "no format for the suffix '.what'"),
        (["compare", "pictures", "--model", "shop:net", "--out", "s.png", "--method", "gradcam"], "mean 'grad-cam'"),
        (
            ["compare", "pictures", "--model", "shop:net", "--out", "s.png", "--method", "legrad"],
            "legrad cannot explain",
        ),
        (["compare", "pictures", "--model", "shop:net", "--out", "s.png", "--layer", "stage"], "no layer 'stage'; did"),
        (["compare", "pictures", "--model", "shop:net", "--out", "s.png", "--metric", "energy-pointing-game"], "masks"),
        (["layers", "--model", "demmo"], "package.module:factory; did you mean 'demo'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    Path("two.txt").write_text("one\ntwo\n")
    status, said, problem = cli(*arguments)
    assert (status, said) == (2, "")
    last = problem.splitlines()[-1]
    assert last.startswith("gradcam-kit: ")
    assert says in last
    assert all(line.startswith("note: ") for line in problem.splitlines()[:-1])
    assert not Path("out").exists()


@pytest.mark.parametrize("arguments", [["run", "pictures"], ["run", "--nonsense"], ["fly"], ["run", "a", "b"]])
def test_a_wrong_usage_is_status_2(arguments: list[str]) -> None:
    status, said, problem = cli(*arguments)
    assert (status, said) == (2, "")
    assert "Usage" in problem


def test_flags_reach_the_run() -> None:
    disk.write_pictures(Path("pictures"))
    Path("names.txt").write_text("x\ny\nz\n")
    status, _, notes = cli(
        *("run", "pictures/**/a.png", "--model", "shop:nameless", "--out", "out", "--image-size", "64"),
        *("--mean", "0,0,0", "--std", "1,1,1", "--class-names", "names.txt", "--targets", "top:2", "--overlays", "1"),
        *("--layer", "stage1", "--batch-size", "2", "--shard-size", "2", "--dtype", "bfloat16", "--device", "cpu"),
    )
    assert status == 0
    assert "changed by options" in notes
    rows = disk.read_rows(Path("out"))
    assert [row["path"] for row in rows] == ["cat/a.png"] * 2 + ["cat/deeper/a.png"] * 2 + ["cup/a.png"] * 2
    assert {row["layer"] for row in rows} == {"stage1"}
    assert {row["target_name"] for row in rows} <= {"x", "y", "z"}
    assert {(row["height"], row["width"]) for row in rows} == {(20, 20)}
    assert len(list(Path("out/shards").iterdir())) == 2
    assert sorted(path.name for path in Path("out/overlays").rglob("*.jpg")) == [
        "a.png.grad-cam.2.jpg",
        "a.png.grad-cam.jpg",
    ]
    assert cli("run", "pictures", "--model", "shop:net", "--out", "out")[0] == 2
    assert cli("run", "pictures/top.png", "--model", "shop:net", "--out", "out", "--overwrite")[0] == 0
    assert [row["path"] for row in disk.read_rows(Path("out"))] == ["top.png"]


@pytest.mark.slow
def test_the_process_exits_as_documented_and_shows_no_traceback() -> None:
    disk.write_pictures(Path("pictures"))
    good = process("run", "pictures", "--model", "demo", "--out", "out", "--overlays", "1")
    assert (good.returncode, good.stderr.count("\n")) == (0, 4)  # lines: transform, layer, score, and what was done
    assert "note: the layer layer4 is explained" in good.stderr
    disk.break_pictures(Path("pictures"))
    some = process("run", "pictures", "--model", "demo", "--out", "out", "--overwrite")
    assert some.returncode == 1
    assert some.stderr.count("failed: ") == 4
    status, said, _ = cli("run", "pictures", "--model", "demo", "--out", "out")
    assert status == 1
    assert "(" + str(len(disk.read_rows(Path("out")))) + " of them before)" in said
    wrong = process("run", "pictures", "--model", "demo", "--out", "out", "--targets", "1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.splitlines()[-1].startswith("gradcam-kit: 'out' holds a run with different targets")
    assert "Traceback" not in good.stderr + some.stderr + wrong.stderr

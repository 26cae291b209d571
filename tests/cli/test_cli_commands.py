"""The other commands: comparisons, lists, the demo, help; and what is imported for them."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import disk
import numpy as np
import pytest
from commands import cli
from PIL import Image

from gradcam_kit.cli import app
from gradcam_kit.demo import sample_pictures
from gradcam_kit.jobs import RunSummary
from gradcam_kit.jobs.demos import every
from gradcam_kit.methods import METHODS
from gradcam_kit.methods.recommended import recommended
from gradcam_kit.models import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def test_compare_draws_a_sheet_and_replaces_it_only_when_told() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    arguments = ("compare", "pictures/a.png", "--model", "shop:net", "--out", "sheet.png")
    status, said, notes = cli(*arguments)
    assert (status, "1 of 1 pictures explained" in said) == (0, True)
    assert "left out methods that do not suit the model or layer: attention-rollout" in notes
    with Image.open("sheet.png") as sheet:
        all_methods = sheet.size
    status, _, problem = cli(*arguments, "--method", "grad-cam")
    assert (status, "'sheet.png' already exists" in problem) == (2, True)
    cli(*arguments, "--method", "grad-cam", "--overwrite")
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] < all_methods[0] < 2000  # many methods go on in further rows
        assert sheet.size[1] < all_methods[1]


def test_compare_tells_pictures_of_the_same_name_apart_and_survives_broken_ones() -> None:
    for folder in ("one", "two"):
        disk.write_picture(Path(folder, "img.png"), disk.CAT)
    Path("two/bad.png").write_text("no picture")
    status, said, problems = cli(
        *("compare", "one/img.png", "two/img.png", "two/bad.png", "--model", "shop:net", "--out", "rows.csv"),
        *("--method", "grad-cam", "--method", "center", "--layer", "stage1", "--layer", "stage2", "--layer"),
        *("stage1+stage2", "--metric", "average-drop", "--targets", "top:2"),
    )
    assert (status, "2 of 3 pictures explained" in said) == (1, True)
    assert "failed: two/bad.png: cannot read the picture" in problems or "failed: bad.png" in problems
    with Path("rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = ["grad-cam stage1", "grad-cam stage2", "grad-cam stage1+stage2", "center"]
    assert [(row["image"], row["method"]) for row in rows] == [
        (f"{folder}/img.png", label) for folder in ("one", "two") for _ in range(2) for label in labels
    ]
    assert {row["layer"] for row in rows} == {"stage1", "stage2", "stage1+stage2", ""}
    assert all(0 <= float(row["average-drop"]) <= 100 for row in rows)


def test_compare_shows_what_the_model_saw() -> None:
    disk.write_picture(Path("a.png"), disk.COFFEE)
    assert cli("compare", "a.png", "--model", "shop:net", "--out", "page.html", "--method", "grad-cam")[0] == 0
    page = Path("page.html").read_text()
    data = re.search(r"--gk-picture:url\(data:image/jpeg;base64,(.*?)\)", page)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as picture:
        x0, y0, x1, y1 = load_model("shop:net").transform.box(*disk.COFFEE.shape[:2])
        assert picture.size == (round(x1) - round(x0), round(y1) - round(y0))


def test_layers_are_listed_and_one_is_chosen() -> None:
    status, said, _ = cli("layers", "--model", "shop:net")
    assert status == 0
    lines = {line.split("│")[1].strip(): line for line in said.splitlines() if "│" in line}
    assert [cell.strip() for cell in lines["stage2"].split("│")[1:-1]] == [
        *("stage2", "8 x 7 x 9", "ChannelsFirst", "yes", "yes")
    ]
    assert [cell.strip() for cell in lines["stage1"].split("│")[4:-1]] == ["yes", ""]
    assert "stage2 is chosen: the last layer with positions on which the score depends" in said


def test_every_method_is_listed_with_its_needs_cost_and_paper() -> None:
    status, said, _ = cli("methods")
    assert status == 0
    lines = [line for line in said.splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == list(recommended())
    for name, method in METHODS.items():
        [line] = [line for line in lines if line.split("│")[1].strip() == name]
        assert recommended()[name] in line
        assert method.cost in line
        assert method.paper in line
    assert any("activations, gradients" in line for line in lines)


@pytest.mark.slow
def test_the_demo_finds_the_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sample_pictures()[::4]  # all methods with all eight take a minute
    monkeypatch.setattr(every, "sample_pictures", lambda: samples)
    status, said, notes = cli("demo", "--all", "--out", "shown")
    assert status == 0
    assert "grad-cam: " in notes  # a line for each method that is done
    shares = {}
    for line in said.splitlines():
        if "%" in line:
            name, share = (cell.strip() for cell in line.split("│")[1:3])
            shares[name.partition(",")[0]] = float(share.rstrip("%"))
    [unsuited] = [line for line in said.splitlines() if line.startswith("Not for")]
    attention = {"attention-rollout", "generic-attention", "grad-eclip", "legrad", "vit-recipro-cam", "d-rise"}
    assert set(unsuited.partition(": ")[2].split(", ")) == attention
    assert set(shares) == {*METHODS, "(random)", "(the same everywhere)"} - attention
    covered = np.mean([sample.mask.mean() for sample in samples]) * 100
    assert shares["(the same everywhere)"] == pytest.approx(covered, abs=0.1)
    assert shares["(random)"] == pytest.approx(covered, abs=1)
    assert shares["grad-cam"] > 2 * covered
    assert len(list(Path("shown/overlays").iterdir())) == 2 * (len(METHODS) - len(attention))
    with Image.open("shown/methods.png") as sheet:
        assert sheet.size[0] > 128 * 2
        assert sheet.size[1] > 128 * (len(METHODS) - len(attention) + 1)


def test_help_names_every_exit_status() -> None:
    cases = (0, False), (1, False), (0, True)
    ends = [RunSummary("out", 1, failed, (), 0.0, interrupted=stopped) for failed, stopped in cases]
    known = {2, *(summary.exit_status for summary in ends)}
    assert {int(number) for number in re.findall(r"\d+", app.info.epilog or "")} == known


def test_what_is_imported_is_loaded_when_it_is_used() -> None:
    code = (
        "import sys, gradcam_kit; print('torch' in sys.modules, gradcam_kit.GradCAM is gradcam_kit.METHODS['grad-cam'],"
        " all(hasattr(gradcam_kit, name) for name in gradcam_kit.__all__), 'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=True
    )
    assert shown.stdout == "False True True True\n"


def test_help_loads_neither_models_nor_renderers() -> None:
    code = (
        "import sys, gradcam_kit.cli; from typer.testing import CliRunner;"
        "print(CliRunner().invoke(gradcam_kit.cli.app, ['--help']).exit_code,"
        " sorted({'cv2', 'PIL', 'pyarrow', 'pandas', 'timm', 'transformers', 'torchvision'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=True)
    assert shown.stdout == "0 []\n"

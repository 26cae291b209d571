"""Every example of README.md runs as it is written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gradcam_kit.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run_in_order_and_give_what_their_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["heatmaps"].shape == (8, 128, 128)
    assert names["two_classes"].shape == (8, 2, 128, 128)
    assert names["explanation"].saliency["layer4"].shape == (8, 16, 16)
    assert names["picture"].dtype == np.uint8
    assert names["seen"] == (0, 0, 128, 128)
    assert names["odd"].shape == (8, 128, 128)
    assert names["sheet"].shape[2] == 3
    assert names["comparison"].heatmaps["grad-cam layer3"].shape == (8, 128, 128)
    assert (tmp_path / "comparison.html").exists()
    assert names["layer_cam"].shape == (8, 128, 128)
    assert names["run"].heatmap(0).shape == (128, 128)
    assert names["stored"].shape == (16, 16)
    added_up = names["average_drop"].compute()
    assert (added_up["count"], float(added_up["mean"])) == (8, pytest.approx(float(names["dropped"].mean), rel=1e-4))
    assert names["pointing"].compute()["count"] == names["precision"].compute()["count"] == 8
    assert names["learned"].steps == 3


def test_the_check_it_shows_is_what_the_example_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    first, asked = blocks("python")[0], next(block for block in blocks("python") if ".check(" in block)
    exec(compile(first + asked, "README.md", "exec"), names)
    printed = capsys.readouterr().out.strip()
    shown = re.search(r"```\n(Sanity check of .*?)\n```", README, re.DOTALL)
    assert shown
    number = r"[-+]?\d+\.\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown[1])
    # How much maps of drawn weights resemble the real ones may differ in the second digit between versions of torch.
    for here, there in zip(re.findall(number, printed), re.findall(number, shown[1]), strict=True):
        assert float(here) == pytest.approx(float(there), abs=0.1)


def test_the_folder_command_runs_and_leaves_what_is_promised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PICTURES", "MASKS"):
        (tmp_path / name).symlink_to(ROOT / "gradcam_kit" / "demo" / name.lower(), target_is_directory=True)
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("gradcam-kit")]
    assert commands
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "heatmaps/overlays/01-disc-small.png.layer-cam.jpg").exists()
    assert list((tmp_path / "heatmaps/shards").glob("*.parquet"))


@pytest.mark.parametrize("picture", re.findall(r"!\[.*?\]\((.*?)\)", README))
def test_its_pictures_exist(picture):
    assert (ROOT / picture).stat().st_size > 10_000


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+CAM\w*)`", README))))
def test_the_methods_it_names_exist(name):
    import gradcam_kit

    assert hasattr(gradcam_kit, name)

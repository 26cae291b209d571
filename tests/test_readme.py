"""Every example of README.md runs as it is written there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from skimage import data, io
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.models.photos import INSTALL, PACKAGE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run_in_order_and_give_what_their_comments_say(tmp_path, monkeypatch):
    if find_spec(PACKAGE) is None:
        pytest.skip(f"the first example needs the photographs' network: {INSTALL}")
    monkeypatch.chdir(tmp_path)
    io.imsave("cat.jpg", data.chelsea())
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
    assert names["heatmaps"].shape == (8, 128, 128)
    assert names["two_classes"].shape == (8, 2, 128, 128)
    assert len(names["shared"]) == 2
    assert (tmp_path / "comparison.html").exists()
    assert names["diagnostics"].report().steps == 3


def test_it_is_read_in_a_few_minutes():
    assert len(README.split()) <= 1000


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

"""Code of a user's that would end the program is an error, not a success; an interruption stays one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disk
import pytest
from typer.testing import CliRunner

from gradcam_kit import explain_folder
from gradcam_kit.cli import app
from gradcam_kit.errors import InputError
from gradcam_kit.models import load_model

NET = """
import sys, torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))
"""
MODULES = {
    "module_exits": ("import sys\ndef make(): pass\nsys.exit(0)\n", "called sys.exit(0)"),
    "module_raises": ("def make(): pass\nraise SystemExit\n", "called sys.exit()"),
    "module_parses": (
        "import argparse\nargparse.ArgumentParser().parse_args(['--what'])\ndef make(): pass\n",
        "called sys.exit(2)",
    ),
    "factory_exits": ("import sys\ndef make(): sys.exit(0)\n", "called sys.exit(0)"),
    "factory_says": ("import sys\ndef make(): sys.exit('no data')\n", "called sys.exit('no data')"),
    "class_exits": ("import sys\nclass make:\n    def __init__(self): sys.exit(1)\n", "called sys.exit(1)"),
    "forward_exits": (
        NET + "class Ending(Net):\n    def forward(self, images): sys.exit(0)\ndef make(): return Ending()\n",
        "called sys.exit(0)",
    ),
    "lazy_module_exits": ("import sys\ndef __getattr__(name): sys.exit(0)\n", "called sys.exit(0)"),
    "lazy_module_fails": ("def __getattr__(name): return 1 / 0\n", "failed: ZeroDivisionError"),
    "transform_exits": (
        NET + "def make():\n    model = Net()\n    model.transform = lambda picture: sys.exit(0)\n    return model\n",
        "the transform of transform_exits:make fails on all of the first pictures: SystemExit",
    ),
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    for name, (code, _) in MODULES.items():
        Path(f"{name}.py").write_text(code)


@pytest.mark.parametrize("name", MODULES)
def test_it_is_one_line_and_status_2(name: str) -> None:
    done = CliRunner().invoke(app, ["run", "pictures", "--model", f"{name}:make", "--out", "out"])
    lines = [line for line in done.output.splitlines() if line.startswith("gradcam-kit: ")]
    assert (done.exit_code, len(lines), MODULES[name][1] in lines[0]) == (2, 1, True)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(("module", "factory", "class"))])
def test_a_program_gets_an_error(name: str) -> None:
    with pytest.raises(InputError, match=r"sys\.exit"):
        load_model(f"{name}:make")


def test_a_method_that_exits_is_one_line_too() -> None:
    Path("method_exits.py").write_text("import sys\nsys.exit(0)\n")
    asked = ["run", "pictures", "--model", "shop:net", "--out", "out", "--method", "method_exits:Mine"]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, "importing 'method_exits' called sys.exit(0)" in done.output) == (2, True)


def ending_by(body: str) -> Any:
    """A model whose forward pass is this code."""
    made: dict[str, Any] = {}
    exec(f"{NET}class Ending(Net):\n    def forward(self, images):\n        {body}\n", made)
    return made["Ending"]().eval()


@pytest.mark.parametrize("ending", ["sys.exit(0)", "raise SystemExit", "later"])
def test_a_folder_is_not_explained_by_a_model_that_ends_the_program(ending: str) -> None:
    """In a program of the user's, whose status would be 0."""
    later = """self.calls = getattr(self, 'calls', 0) + 1
        if self.calls > 1: sys.exit(0)
        return super().forward(images)"""
    net = ending_by(later if ending == "later" else ending)
    with pytest.raises(InputError, match=r"called sys\.exit\(0?\); raise an exception"):
        explain_folder("pictures", net, "out", quiet=True)
    assert not Path("out").exists()


def test_a_picture_at_which_the_model_ends_the_program_is_a_failed_row() -> None:
    disk.write_picture(Path("pictures/b.png"), disk.PERSON)
    model = ending_by("""if images.mean(dim=(1, 2, 3)).max() > self.most: sys.exit(0)
        return super().forward(images)""")
    model.most = float("inf")
    means = []
    handle = model.register_forward_pre_hook(lambda _, args: means.append(args[0].mean(dim=(1, 2, 3)).tolist()))
    explain_folder("pictures", model, "first", quiet=True)
    handle.remove()
    low, high = min(map(min, means)), max(map(max, means))
    assert low < high
    model.most = (low + high) / 2
    rows = explain_folder("pictures", model, "out", quiet=True)
    failed = [row for row in rows if row["status"] == "error"]
    assert (len(failed), "called sys.exit(0)" in failed[0]["error"]) == (1, True)


def test_an_interruption_stays_one() -> None:
    Path("interrupted.py").write_text("def make(): raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_model("interrupted:make")

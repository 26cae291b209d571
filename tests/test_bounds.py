"""The lower bounds of dependencies, and what a machine without OpenCV's system libraries is told."""

from __future__ import annotations

import re
from pathlib import Path

import forked
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "transformers", "open-clip-torch", "ipywidgets", "jupyterlab"}


def test_the_tested_lower_bounds_are_the_declared_ones() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    user = (
        text[text.index("dependencies = [") : text.index("ray = [")]
        + text[text.index("notebook = [") : text.index("all = [")]
    )
    declared = {name: Version(lowest) for name, lowest in re.findall(r'"([\w-]+)>=([\w.]+)"', user)}
    lines = (ROOT / ".ci/constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = {name: Version(lowest) for name, lowest in (line.split("==") for line in lines if line[0] != "#")}
    assert tested == {name: lowest for name, lowest in declared.items() if name not in HEAVY}


BROKEN = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError(message)
sys.meta_path.insert(0, Missing())
message = {message!r}
"""
COMMAND = """
from gradcam_kit.__main__ import main
for message in sys.argv[1:]:
    sys.argv = ["gradcam-kit", "methods"]
    try:
        main()
    except SystemExit as ending:
        print(ending.code)
"""


REMEDIES = {
    "libGL.so.1: cannot open shared object file: No such file": "apt-get install libgl1 libglib2.0-0",
    "libgthread-2.0.so.0: cannot open shared object file: No such file": "apt-get install libgl1 libglib2.0-0",
    "No module named 'cv2'": "pip install opencv-python",
}


def test_a_machine_where_opencv_cannot_be_loaded_gets_one_line() -> None:
    result = forked.run(BROKEN.format(message="") + COMMAND, *REMEDIES, check=False)
    assert result.stdout.split() == ["2"] * 3, result.stderr
    for line, (message, remedy) in zip(result.stderr.splitlines(), REMEDIES.items(), strict=True):
        assert line.startswith("gradcam-kit: ")
        assert message in line
        assert remedy in line


def test_overlay_names_the_remedy_too() -> None:
    code = BROKEN.format(message="libGL.so.1: cannot open shared object file")
    code += "import gradcam_kit\ntry:\n    gradcam_kit.overlay\nexcept ImportError as error:\n    print(error)"
    result = forked.run(code)
    assert "apt-get install libgl1 libglib2.0-0" in result.stdout


WITHOUT_LEVELS = """
import sys
import cv2.utils
vars(cv2.utils).pop("logging", None)
sys.modules["cv2.utils.logging"] = None
from gradcam_kit.pixels.opencv import log_level, set_log_level
set_log_level()
assert log_level() == 0
"""


def test_opencv_without_its_logging_module_is_silent() -> None:
    assert forked.run(WITHOUT_LEVELS).returncode == 0

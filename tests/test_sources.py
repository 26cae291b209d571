"""Rules for the sources of the package, and what importing it loads."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import forked
import pytest

import gradcam_kit

PACKAGE = Path(__file__).parents[1] / "gradcam_kit"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def lines_with(pattern: str, *folders: str, but: tuple[str, ...] = ()) -> list[str]:
    """The places of a pattern in files or folders of the package, all of them if none is named."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in sorted(SOURCES.items())
        if (not folders or name.startswith(folders)) and not name.startswith(but or ("\0",))
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_the_patterns_find_what_they_are_meant_for() -> None:
    assert lines_with(r"register_\w*hook", "capture/")
    assert lines_with(r"\bdef \w+", "functional.py")


def test_only_capture_attaches_hooks() -> None:
    assert (
        lines_with(r"register_\w*hook|register_hook|\._forward_(pre_)?hooks|\.retain_grad\(", but=("capture/",)) == []
    )


def test_hooks_of_capture_are_held_in_one_place() -> None:
    assert lines_with(r"register_\w*hook", "capture/", but=("capture/attaching.py",)) == []


def test_no_full_backward_hook_anywhere() -> None:
    # It fails in front of modules that work in place.
    assert lines_with(r"register_(module_)?full_backward_(pre_)?hook") == []


def test_the_arithmetic_never_waits_for_the_device() -> None:
    assert (
        lines_with(
            r"\.item\(\)|\.tolist\(\)|\.numpy\(\)|\.cpu\(\)",
            "functional.py",
            "methods/",
            but=("methods/engine/explanation.py",),
        )
        == []
    )
    assert lines_with(r"\.item\(\)", "capture/", "metrics/") == []


def test_no_progress_bar_and_no_printing_in_the_core() -> None:
    assert lines_with(r"\btqdm\b|\bprint\(", "functional.py", "capture/", "methods/", "metrics/") == []


def test_no_global_random_state() -> None:
    pattern = r"torch\.(cuda\.)?manual_seed\(|np\.random\.(?!Generator)|^\s*(import|from) random\b"
    assert lines_with(pattern, "functional.py", "capture/", "methods/", "metrics/") == []


def test_no_hint_names_a_package_that_others_could_publish() -> None:
    assert lines_with(r"gradcam-kit\[") == []  # errors.missing_extra installs from the checkout


def test_no_destructor_and_no_swallowed_error() -> None:
    assert lines_with(r"def __del__") == []
    for name, text in SOURCES.items():
        if name.startswith(("functional.py", "capture/", "methods/", "metrics/")):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ExceptHandler) and re.search(
                    r"\b(Base)?Exception\b", ast.unparse(node.type) if node.type else "BaseException"
                ):
                    # What catches everything raises again, or logs why it goes another way.
                    assert re.search(r"\braise\b|\b_log\.", ast.unparse(node)), f"{name}:{node.lineno}"


@pytest.mark.parametrize("module", ["cv2", "PIL", "pandas", "ray", "typer", "skimage", "matplotlib"])
def test_the_core_imports_no_heavy_library(module: str) -> None:
    assert lines_with(rf"^\s*(from|import) {module}\b", "functional.py", "capture/", "methods/") == []


def test_capture_knows_nothing_of_methods() -> None:
    assert (
        lines_with(
            r"gradcam_kit\.(methods|metrics|render|jobs|cli|comparison)", "capture/", "functional.py", "types.py"
        )
        == []
    )


STAGES = """
import json, sys
stages = {}
def loaded(stage):
    stages[stage] = sorted(sys.modules)
import torch
loaded("torch")
import gradcam_kit
loaded("package")
import gradcam_kit.targets, gradcam_kit.methods
loaded("methods")
layers = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
gradcam_kit.GradCAM(torch.nn.Sequential(*layers))(torch.rand(1, 3, 8, 8))
loaded("call")
gradcam_kit.overlay
loaded("overlay")
print(json.dumps(stages))
"""
HEAVY = {
    "cv2", "PIL", "matplotlib", "pandas", "skimage", "ray", "typer", "torchvision", "timm", "transformers", "pyarrow",
    "sklearn", "torch._dynamo",
}  # fmt: skip


def test_import_is_light_and_the_rest_is_loaded_when_used() -> None:
    result = forked.run(STAGES)
    stages = {stage: HEAVY & set(modules) for stage, modules in json.loads(result.stdout).items()}
    assert stages["package"] == stages["torch"]
    assert stages["methods"] == stages["torch"]
    assert stages["call"] == stages["torch"]  # a plain model needs no compiler
    assert "cv2" in stages["overlay"]


def test_lazy_names_are_listed_and_unknown_ones_told() -> None:
    assert set(gradcam_kit.__all__) <= set(dir(gradcam_kit))
    assert callable(gradcam_kit.overlay)
    with pytest.raises(AttributeError, match="no attribute 'grad_cam'"):
        gradcam_kit.grad_cam  # noqa: B018

"""What is built for a release: twice the same bytes, complete, and at work outside of the checkout."""

from __future__ import annotations

import email
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest

import gradcam_kit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradcam_kit"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("hatchling") is None, reason='needs hatchling: pip install -e ".[dev]"'),
]


def build(kind: str, folder: Path) -> Path:
    """A distribution of the checkout, built without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    [made] = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def data_files() -> set[str]:
    """Everything of the package that is not compiled, by its path from the root of the checkout."""
    found = subprocess.run(["git", "ls-files", "gradcam_kit"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = found.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file()]
    return {name for name in names if "__pycache__" not in name and (ROOT / name).exists()}


def test_a_build_gives_the_same_bytes_again(wheel: Path, tmp_path: Path) -> None:
    again = build("wheel", tmp_path / "wheel")
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()
    first, second = (build("sdist", tmp_path / folder) for folder in ("first", "second"))
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(file.read(metadata))
    assert {name for name in names if ".dist-info/" not in name} == data_files()
    assert {
        "gradcam_kit/py.typed",
        "gradcam_kit/demo/demo.safetensors",
        "gradcam_kit/jobs/demos/templates/demo.html",
    } <= {*names}
    assert (said["Name"], said["Version"]) == ("gradcam-kit", gradcam_kit.__version__)
    assert said["Author"] == "gradcam-kit developers"


def test_the_source_distribution_has_what_a_wheel_is_built_from(tmp_path: Path) -> None:
    made = build("sdist", tmp_path)
    with tarfile.open(made) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert data_files() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_wheel_works_outside_of_the_checkout(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*pip, str(wheel)], capture_output=True, check=True)
    code = (
        "import gradcam_kit, sys; from gradcam_kit.__main__ import main\n"
        f"assert gradcam_kit.__file__.startswith({str(installed)!r}), gradcam_kit.__file__\n"
        "sys.argv = ['gradcam-kit', 'layers', '--model', 'demo']; main()"
    )
    monkeypatch.chdir(elsewhere)
    shown = forked.run(code, environment={"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"})
    assert "layer4 is chosen" in shown.stdout

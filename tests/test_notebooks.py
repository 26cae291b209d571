"""The notebooks run without an error, and are stored without outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_eight():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"0{number}_" for number in range(1, 9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_their_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link


SHORTER = {
    "03_compare_methods": ("for seed in range(16)", "for seed in range(4)"),
    "04_transformers": ("epochs, size = 12, 32", "epochs, size = 1, 32"),
}
"""Notebooks that take most of a minute -> what makes them cheap, with every cell as it is otherwise."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "whole"),
    [
        *(pytest.param(path, path.stem not in SHORTER, id=path.stem) for path in NOTEBOOKS),
        *(
            pytest.param(path, True, id=f"{path.stem} as it is", marks=pytest.mark.exhaustive)
            for path in NOTEBOOKS
            if path.stem in SHORTER
        ),
    ],
)
def test_they_run_and_become_pages_with_pictures(path, whole, tmp_path):
    source = path.parent
    if not whole:
        source, text = tmp_path, path.read_text(encoding="utf-8")
        assert text.count(SHORTER[path.stem][0]) == 1
        (source / path.name).write_text(text.replace(*SHORTER[path.stem]), encoding="utf-8")
    # In a process of its own, whose warnings are not ours; an error in a cell is an exit status.
    done = subprocess.run(
        [sys.executable, "-m", "notebooks.build", path.stem, "--source", source, "--out", tmp_path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / f"{path.stem}.html").read_text()
    assert page.count("data:image/") > 2
    assert "Traceback (most recent call last)" not in page
    assert '.ipynb"' not in page  # links lead to the other pages

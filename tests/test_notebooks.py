"""The notebooks run without an error, and are stored without outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from forked import in_fork

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


BUILT = "01_first_heatmap"
"""The notebook that becomes a page by default; for the others their cells are enough."""


def cells_of(path: Path) -> list[str]:
    """The code of a notebook, made cheap."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    if path.stem in SHORTER:
        assert "\n".join(cells).count(SHORTER[path.stem][0]) == 1
        cells = [cell.replace(*SHORTER[path.stem]) for cell in cells]
    return cells


def run_cells(cells: list[str], folder: Path) -> None:
    """Run cells as a notebook does, and print how many pictures they show."""
    import matplotlib as mpl
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib import pyplot
    from traitlets.config import Config

    os.chdir(folder)
    mpl.use("agg")
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shown = 0
    for cell in cells:
        done = shell.run_cell(cell, silent=True)
        done.raise_error()
        data, _ = shell.display_formatter.format(done.result)
        shown += ("image/png" in data) + data.get("text/html", "").count("data:image/") + len(pyplot.get_fignums())
        pyplot.close("all")
    print(f"{shown} pictures")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != BUILT], ids=lambda path: path.stem)
def test_their_cells_run_and_show_pictures(path, tmp_path):
    said = in_fork(lambda: run_cells(cells_of(path), tmp_path))
    assert int(said.splitlines()[-1].removesuffix(" pictures")) > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(path.stem, marks=() if path.stem == BUILT else pytest.mark.exhaustive) for path in NOTEBOOKS],
)
def test_they_run_and_become_pages_with_pictures(name, tmp_path):
    # In a process of its own, whose warnings are not ours; an error in a cell is an exit status.
    done = subprocess.run(
        [sys.executable, "-m", "notebooks.build", name, "--out", tmp_path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / f"{name}.html").read_text()
    assert page.count("data:image/") > 2
    assert "Traceback (most recent call last)" not in page
    assert '.ipynb"' not in page  # links lead to the other pages

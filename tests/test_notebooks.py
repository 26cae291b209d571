"""The notebooks run without an error, and what is stored in them is what their code shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from notebook_runs import code_cells, is_alike, run, stored_runs

from gradcam_kit.errors import MissingExtraError
from gradcam_kit.methods import METHODS
from gradcam_kit.models.photos import weights_file
from notebooks.outputs import KEY, code_hash

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_THE_MACHINE = re.compile(r"/(work|home|root|tmp|Users|opt|usr)/|site-packages| at 0x")
MOST_BYTES = 3_000_000

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
TRAIN = ("03", "04", "06", "08", "09", "10")


def test_they_are_numbered_and_small():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{number:02}_" for number in range(1, 14)]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


@each
def test_the_stored_outputs_are_those_of_the_code(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata[KEY].code == code_hash(notebook), "run `python -m notebooks.build`"
    assert set(notebook.metadata) == {"kernelspec", "language_info", KEY}
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} <= {"stdout"}
    assert sum(kind.startswith("image/") for output in outputs for kind in output.get("data", {})) >= 1
    shown = [
        str({kind: text for kind, text in one.get("data", {}).items() if kind.startswith("text/")}) for one in outputs
    ]
    assert not [text for text in [*shown, *(one.get("text", "") for one in outputs)] if OF_THE_MACHINE.search(text)]


@each
def test_their_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link


@pytest.fixture
def _nothing_stays(tmp_path, monkeypatch):
    """Notebooks register methods, write files, and draw from the global generator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    before, threads = dict(METHODS), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_stays")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.long] * path.name.startswith(TRAIN), id=path.stem) for path in NOTEBOOKS],
)
def test_they_run_and_show_what_is_stored(path):
    if any("mobilenet-v2" in cell.source for cell in code_cells(path)):
        try:
            weights_file()
        except MissingExtraError as error:
            pytest.skip(str(error))
    for now, stored in zip(run(path), stored_runs(path), strict=True):
        assert is_alike(now.printed, stored.printed), f"{now.printed}\n--- stored:\n{stored.printed}"
        assert is_alike(now.shown, stored.shown), f"{now.shown}\n--- stored:\n{stored.shown}"


def test_texts_are_alike_if_most_of_their_words_are():
    assert is_alike("accuracy 97.5%, 3 of 24 maps", "accuracy 93%, 12 of 24 maps")
    assert not is_alike("there is no layer 'a'", "the model has no such module: a")
    assert is_alike(None, None)
    assert not is_alike("", None)


def _written(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, path)
    return path.read_bytes()


@pytest.mark.long
def test_a_page_is_written_also_when_a_cell_fails_or_takes_too_long(tmp_path):
    _written(tmp_path / "1_good.ipynb", "import os\nprint(os.getcwd())", "6 * 7")
    failing = _written(tmp_path / "2_fails.ipynb", "print('before')\n1 / 0", "print('never')")
    slow = _written(tmp_path / "3_slow.ipynb", "print('at once', flush=True)\nimport time\ntime.sleep(60)")
    # In a process of its own, whose warnings are not ours.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "notebooks.build",
            "--source",
            tmp_path,
            "--out",
            tmp_path / "pages",
            "--timeout",
            "2",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert [re.sub(r".*\.html: |\d+ s$", "", line) for line in said] == [
        "",
        "FAILED, nothing is stored: ZeroDivisionError: division by zero",
        "FAILED, nothing is stored: took more than ",
    ], done.stderr
    good, bad, late = (path.read_text() for path in sorted((tmp_path / "pages").glob("*.html")))
    assert "42" in good
    assert "ZeroDivisionError" in bad
    assert "before" in bad
    assert "took more than 2 s" in late
    assert "at once" in late
    stored = nbformat.read(tmp_path / "1_good.ipynb", as_version=4)
    assert [cell.execution_count for cell in stored.cells] == [1, 2]
    assert "/" not in stored.cells[0].outputs[0].text
    assert stored.metadata[KEY].code == code_hash(stored)
    stored.cells[0].source += "\n"
    assert stored.metadata[KEY].code != code_hash(stored)
    assert ((tmp_path / "2_fails.ipynb").read_bytes(), (tmp_path / "3_slow.ipynb").read_bytes()) == (failing, slow)

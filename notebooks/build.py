"""Run the notebooks, store their outputs in them, and write each as a page: `python -m notebooks.build [NAME ...]`.

Run it after a change of their code, or of what they show: a test compares code and outputs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

from notebooks.outputs import PREPARATION, tidy

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_SECONDS = 600  # for one cell, on a machine that does much else


def execute(notebook: nbformat.NotebookNode, timeout: float = _SECONDS) -> str | None:
    """Run the cells in an empty folder that is removed, and leave their outputs in the notebook.

    Returns:
        None; or what went wrong in a cell, the last one that has outputs.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = {
        **os.environ,
        # The kernel imports the package of this checkout, also where another one is installed.
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",  # trainings end alike, however many cores there are
    }
    preparation = nbformat.v4.new_code_cell(PREPARATION)
    notebook.cells.insert(0, preparation)
    running: list[nbformat.NotebookNode] = []
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout_func=lambda cell: None if cell is preparation else timeout,
            record_timing=False,
            resources={"metadata": {"path": folder}},
            on_cell_start=lambda cell, cell_index: running.append(cell),
        )
        try:
            client.execute(env=environment)
            problem = None
        except CellExecutionError as error:
            problem = f"{error.ename}: {error.evalue}"
        except (CellTimeoutError, DeadKernelError) as error:
            problem = f"took more than {timeout:g} s" if isinstance(error, CellTimeoutError) else "the kernel died"
            running[-1].outputs.append(nbformat.v4.new_output("error", ename="Stopped", evalue=problem, traceback=[]))
            running[-1].outputs[-1].traceback = [f"Stopped: {problem}"]
    del notebook.cells[0]
    return problem


def write_page(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook as one HTML file; links between notebooks lead to the other pages."""
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    for other in NOTEBOOKS:
        page = page.replace(f'href="{other.name}"', f'href="{other.stem}.html"')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def build(path: Path, out: Path, timeout: float = _SECONDS) -> str | None:
    """Run a notebook, write its page, also of one that failed, and store the outputs of one that did not.

    Returns:
        What went wrong, or None.
    """
    notebook = nbformat.read(path, as_version=4)
    problem = execute(notebook, timeout)
    tidy(notebook)
    write_page(notebook, out / f"{path.stem}.html")
    if problem is None:
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
    return problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, store and write all notebooks, or those whose names begin with one of the arguments."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 01 (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "build" / "notebooks", help="default: %(default)s")
    parser.add_argument("--source", type=Path, default=FOLDER, help="where the notebooks are (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=_SECONDS, metavar="S", help="seconds for one cell (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    names = tuple(options.names) or ""
    chosen = [path for path in sorted(options.source.glob("*.ipynb")) if path.name.startswith(names)]
    if not chosen:
        parser.error(f"no notebook begins with {', '.join(options.names)}")
    failed = 0
    for path in chosen:
        start = time.monotonic()
        problem = build(path, options.out, options.timeout)
        failed += problem is not None
        said = f"{time.monotonic() - start:.0f} s" if problem is None else f"FAILED, nothing is stored: {problem}"
        print(f"{options.out / path.stem}.html: {said}", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Run the notebooks and write each as a page with its pictures: `python -m notebooks.build`, into build/notebooks/."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_SECONDS = 600  # for one cell, on a machine that does much else


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with its outputs, run in an empty folder that is removed; the file is left as it is.

    Raises:
        CellExecutionError: a cell that failed.
    """
    notebook = nbformat.read(path, as_version=4)
    # The kernel imports the package of this checkout, also where another one is installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=_SECONDS, resources={"metadata": {"path": folder}})
        client.execute(env=environment)
    return notebook


def write_page(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook as one HTML file; links between notebooks lead to the other pages."""
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    for other in NOTEBOOKS:
        page = page.replace(f'href="{other.name}"', f'href="{other.stem}.html"')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write all notebooks, or those whose names begin with one of the arguments."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 01 (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "build" / "notebooks", help="default: %(default)s")
    parser.add_argument("--source", type=Path, default=FOLDER, help="where the notebooks are (default: %(default)s)")
    options = parser.parse_args(arguments)
    names = tuple(options.names) or ""
    chosen = [path for path in sorted(options.source.glob("*.ipynb")) if path.name.startswith(names)]
    if not chosen:
        parser.error(f"no notebook begins with {', '.join(options.names)}")
    for path in chosen:
        start = time.monotonic()
        write_page(executed(path), options.out / f"{path.stem}.html")
        print(f"{options.out / path.stem}.html: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

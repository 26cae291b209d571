"""Make pages of the notebooks for the site, and write the tables of the reference: `python docs/hooks.py`.

The tables lie in the repository, so that they are read without the site too; a test fails where they differ from
the code.
"""

from __future__ import annotations

import html
import inspect
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from gradcam_kit.cli import app
from gradcam_kit.methods import METHODS
from gradcam_kit.methods.recommended import recommended
from gradcam_kit.metrics import METRICS

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
REFERENCE = Path(__file__).parent / "reference"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each notebook, with the outputs that are stored in it."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for name, content in notebook_files(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def notebook_files(path: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook, and its pictures, by their names."""
    notebook = nbformat.read(path, as_version=4)
    places = {"unique_key": path.stem, "output_files_dir": "."}
    text, resources = MarkdownExporter().from_notebook_node(notebook, places)
    text = re.sub(r"!\[(?:png|jpeg)\]\(\./([^)]+)\)", r"[![What the cell shows](\1)](\1)", text)  # large at a click
    # Tables of pandas bring a style of their own, which the theme then leaves alone.
    text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.DOTALL).replace(
        ' border="1" class="dataframe"', ""
    )
    text = re.sub(r"\]\((\w+)\.ipynb", r"](\1.md", text.replace("](../docs/", "](../"))
    pictures = {name.removeprefix("./"): content for name, content in resources["outputs"].items()}
    return {f"{path.stem}.md": text, **pictures}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to pages of notebooks, make pictures large at a click, and leave out notes on the source."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = re.sub(r"<!-- begin: not on the site -->.*?<!-- end: not on the site -->", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"^(!\[[^\]]*\]\(([^)]+)\))$", r"[\1](\2)", markdown, flags=re.MULTILINE)
    return re.sub(
        r"\]\((?:\.\./)+notebooks/(\w+)\.ipynb",
        lambda found: f"]({posixpath.relpath(f'notebooks/{found[1]}.md', folder or '.')}",
        markdown,
    )


def on_post_page(output: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers show without a script or a network."""
    formula = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(formula, lambda found: convert(html.unescape(found[2])), output, flags=re.DOTALL)


def commands() -> str:
    """Return usage, help, an example and options of every command."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="gradcam-kit")
    return "\n\n".join(_command(name, command, context) for name, command in group.commands.items())


def _command(name: str, command: Any, parent: Any) -> str:
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=80)
    lines = [f"## {name}", inspect.cleandoc(command.help or ""), f"```text\n{command.get_usage(context)}\n```"]
    rows = [f"| {_cell(first)} | {_cell(text)} |" for first, text in _records(command, context)]
    if command.epilog:
        lines.append(f"Example: `{command.epilog.removeprefix('Example: ')}`")
    return "\n\n".join(lines) + ("\n\n| option | meaning |\n|---|---|\n" + "\n".join(rows) if rows else "")


def _records(command: Any, context: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"`{record[0]}`", record[1]


def methods() -> str:
    """Return a section for every method: its picture, what it is good for, class, cost, paper and formula."""
    good_for, parts = recommended(), []
    for name, method in sorted(METHODS.items()):
        module = inspect.getmodule(method)
        source = (inspect.getdoc(module) or "").splitlines()[0]
        text = inspect.cleandoc(method.__doc__ or "").split("\n\nArgs:")[0].split("\n\nExample:")[0]
        lines = [
            f"## {name}",
            f'<img src="../gallery/methods/{name}.jpg" alt="The map of {name}" align="right" width="128">',
            f"**Good for:** {good_for[name]}.",
            f"`{method.__name__}` · {method.cost or 'F'} · {source}",
            text,
            *_formulas(module),
        ]
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _formulas(module: Any) -> list[str]:
    """Return what the public functions of a method's file say of its formula."""
    own = [one for name, one in inspect.getmembers(module, inspect.isfunction) if not name.startswith("_")]
    texts = [
        inspect.cleandoc(one.__doc__ or "").split("\n\nArgs:")[0] for one in own if one.__module__ == module.__name__
    ]
    return [text for text in texts if "$" in text]


def metrics() -> str:
    """Return a table of all metrics."""
    rows = [
        f"| `{name}` | {_cell(_what_it_is(one.function))} | {one.better} | {_cell(one.cost)} | {_cell(one.paper)} |"
        for name, one in sorted(METRICS.items())
    ]
    return "\n".join(["| name | measures | better | cost | source |", "|---|---|---|---|---|", *rows])


def _what_it_is(function: Callable[..., object]) -> str:
    """Return what a function returns, as its docstring says it."""
    first = inspect.cleandoc(function.__doc__ or "").split("\n")[0].removeprefix("Return ")
    return first[:1].upper() + first[1:]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


_BEGIN, _END = "<!-- begin: python docs/hooks.py -->", "<!-- end: python docs/hooks.py -->"
_MAKERS: dict[str, Callable[[], str]] = {"cli": commands, "methods": methods, "metrics": metrics}


def reference() -> dict[Path, str]:
    """Return the pages of the reference with what stands between their markers made anew."""
    pages = {}
    for name, make in _MAKERS.items():
        path = REFERENCE / f"{name}.md"
        before, rest = path.read_text(encoding="utf-8").split(_BEGIN)
        pages[path] = f"{before}{_BEGIN}\n\n{make().strip()}\n\n{_END}{rest.split(_END)[1]}"
    return pages


if __name__ == "__main__":
    for path, text in reference().items():
        path.write_text(text, encoding="utf-8")

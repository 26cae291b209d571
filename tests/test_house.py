"""The sizes that keep the package readable: lines of a file and of a function, parameters, files in a folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradcam_kit"
WINGS = ("jobs", "comparison")

MOST_LINES, MOST_PARAMETERS, MOST_FILE_LINES, MOST_FILES = 60, 8, 300, 16
REASON = re.compile(r"not\s+grouped\s+in\s+a\s+record")
"""What the docstring of a function says before it gives the reason for its many parameters."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def parameters(function: Function) -> int:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return len(named) - (bool(named) and named[0].arg in ("self", "cls"))


def lines(function: Function) -> int:
    """The lines of signature and body; a docstring may be as long as it has to be."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    whole = (function.end_lineno or 0) - function.lineno + 1
    return whole - (0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1)


def too_large(source: str) -> list[str]:
    """The functions of a source that have more parameters or lines than they may."""
    found = []
    for function in functions(source):
        has_reason = REASON.search(ast.get_docstring(function) or "") is not None
        if parameters(function) > MOST_PARAMETERS and not has_reason:
            found.append(f"{function.name}: {parameters(function)} parameters")
        if lines(function) > MOST_LINES:
            found.append(f"{function.name}: {lines(function)} lines")
    return found


def test_the_rules_see_what_they_are_meant_for() -> None:
    many = ", ".join(f"a{i}" for i in range(9))
    documented = '"""Do it.\n\n    The names are not grouped\n    in a record, because ...\n    """'
    assert too_large(f"def f({many}): ...") == ["f: 9 parameters"]
    assert too_large(f"def f(self, {many[4:]}): ...") == []
    assert too_large(f"def f({many}):\n    {documented}") == []
    assert too_large("def f():\n" + "    a = 1\n" * 60) == ["f: 61 lines"]
    assert too_large(f"def f():\n    {documented}\n" + "    a = 1\n" * 59) == []


@pytest.mark.parametrize("wing", WINGS)
def test_functions_are_short_and_take_few_parameters(wing: str) -> None:
    files = sorted(PACKAGE.joinpath(wing).rglob("*.py"))
    assert files
    found = {path.relative_to(ROOT).as_posix(): too_large(path.read_text(encoding="utf-8")) for path in files}
    assert {name: problems for name, problems in found.items() if problems} == {}


@pytest.mark.parametrize("folder", ["gradcam_kit", "benchmarks"])
def test_files_have_at_most_300_lines(folder: str) -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert sizes
    assert {str(path): size for path, size in sizes.items() if size > MOST_FILE_LINES} == {}


@pytest.mark.parametrize("wing", ["capture", "jobs"])
def test_a_wing_has_rooms_for_more_than_16_files(wing: str) -> None:
    names = sorted(path.name for path in PACKAGE.joinpath(wing).glob("*.py"))
    assert len(names) <= MOST_FILES, names

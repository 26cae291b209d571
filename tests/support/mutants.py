"""Break one line of the package at a time, and see that a test fails: `python -m tests.support.mutants [TEXT]`.

Each file in tests/mutants/ is a list of records of four lines, apart by an empty line; `#` starts a comment:

    gradcam_kit/functional.py                            the file
    - return reduce(torch.add, maps) / len(maps)         a line that is in it once (indentation does not count)
    + return reduce(torch.add, maps)                     what stands there instead
    = tests/test_functional.py::test_fuse_by_hand        the test that notices

The command works on a copy, first without any change (all tests have to pass), then with one change after the other
(each test has to fail). With TEXT it takes the records that contain it. tests/test_mutants.py sees to it that the
lists belong to the code as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LISTS = ROOT / "tests" / "mutants"
_COPIED = ("gradcam_kit", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
_FAILED = 1  # pytest's exit status when tests ran and some failed; others mean that nothing could be run


@dataclass(frozen=True)
class Mutant:
    """One line broken, and the test that notices."""

    path: str
    old: str
    new: str
    test: str

    def apply(self, text: str) -> str:
        """Return the text of the file with the line replaced."""
        lines = text.splitlines()
        places = [place for place, line in enumerate(lines) if line.strip() == self.old]
        if len(places) != 1:
            raise ValueError(f"{self.path} has the line {self.old!r} {len(places)} times; expected once")
        line = lines[places[0]]
        lines[places[0]] = line[: len(line) - len(line.lstrip())] + self.new
        return "\n".join([*lines, ""])

    def __str__(self) -> str:
        return f"{self.path}: {self.old}  ->  {self.new}"


def read_mutants(folder: Path = LISTS) -> Iterator[Mutant]:
    """Yield the records of all lists."""
    for file in sorted(folder.glob("*.txt")):
        text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#"))
        for record in text.split("\n\n"):
            lines = record.strip().splitlines()
            if not lines:
                continue
            if [line[:2] for line in lines[1:]] != ["- ", "+ ", "= "]:
                raise ValueError(f"{file.name} has a record that is not path, '- ', '+ ', '= ':\n{record}")
            yield Mutant(lines[0].strip(), *(line[2:].strip() for line in lines[1:]))


def _run(folder: Path, tests: Sequence[str]) -> int:
    """Run tests in a forked process, and return pytest's exit status."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(folder)
            os.environ["PYTHONPATH"] = str(folder)  # of processes that tests start
            sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, HERE))]
            os._exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, _FAILED):
            output.seek(0)
            print(output.read().decode(errors="replace")[-3000:], file=sys.stderr)
    return status


def try_mutants(folder: Path, mutants: Sequence[Mutant]) -> int:
    """Break one line after the other in the copy, and return how many no test noticed."""
    missed = 0
    for one in mutants:
        file = folder / one.path
        original = file.read_text()
        file.write_text(one.apply(original))
        status = _run(folder, [one.test])
        file.write_text(original)
        missed += status != _FAILED
        print({_FAILED: "caught", 0: "MISSED"}.get(status, "NOT RUN"), one, flush=True)
    print(f"{len(mutants) - missed} of {len(mutants)} caught")
    return missed


def copy_repository(folder: Path) -> None:
    """Copy what the tests need."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


def main(arguments: Sequence[str]) -> int:
    """Try all mutants that contain the texts; the exit status is not 0 if a test did not notice."""
    mutants = [one for one in read_mutants() if all(text in f"{one} {one.test}" for text in arguments)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copy_repository(folder)
        if _run(folder, sorted({one.test for one in mutants})):
            print("the tests fail without any change")
            return 1
        return min(1, try_mutants(folder, mutants))


if __name__ == "__main__":
    import torchvision  # noqa: F401 - once, and not in every forked process

    sys.exit(main(sys.argv[1:]))

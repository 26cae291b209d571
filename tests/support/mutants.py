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
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
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
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if found.returncode not in (0, _FAILED):
        print(found.stdout[-2000:], found.stderr[-2000:], file=sys.stderr)
    return found.returncode


def main(arguments: Sequence[str]) -> int:
    """Try all mutants that contain the text; the exit status counts those that no test noticed."""
    mutants = [one for one in read_mutants() if all(text in f"{one} {one.test}" for text in arguments)]
    missed = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / name)
        if _run(folder, sorted({one.test for one in mutants})):
            print("the tests fail without any change")
            return 1
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

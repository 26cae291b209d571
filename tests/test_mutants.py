"""The lists of broken lines belong to the code as it is; whether tests notice them is asked by a command."""

from __future__ import annotations

import pytest
from mutants import ROOT, Mutant, read_mutants

MUTANTS = list(read_mutants())


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_line_and_the_test_exist(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    changed = mutant.apply(text)
    assert changed != text
    compile(changed, mutant.path, "exec")
    file, _, name = mutant.test.partition("::")
    assert f"\ndef {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_no_line_is_broken_twice_in_the_same_way() -> None:
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)


def test_a_line_that_is_not_there_once_is_refused() -> None:
    mutant = Mutant("a.py", "x = 1", "x = 2", "")
    assert mutant.apply("if y:\n    x = 1\n") == "if y:\n    x = 2\n"
    for text in ("", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match=r"a\.py has the line 'x = 1' [02] times; expected once"):
            mutant.apply(text)

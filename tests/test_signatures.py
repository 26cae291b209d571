"""Calls that users have written go on working: names, kinds and defaults of all parameters are kept in files."""

from __future__ import annotations

import pytest
from signatures import FOLDER, MODULES, lines


@pytest.mark.parametrize("module", MODULES)
def test_public_signatures_are_those_that_are_kept(module: str) -> None:
    kept = (FOLDER / f"{module}.txt").read_text().splitlines()
    assert lines(module) == kept, "if this change is meant: python -m tests.support.signatures, and the CHANGELOG"

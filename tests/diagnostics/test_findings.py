"""What a finding holds, says, and gives to other programs."""

from __future__ import annotations

import json

import pytest

from gradcam_kit.diagnostics.findings import KINDS, Finding, worst_first
from gradcam_kit.errors import OptionError


def test_a_finding_says_what_where_the_number_and_what_to_try_in_two_lines() -> None:
    finding = Finding(
        "bad", "dead", "layer1.relu", "40 of 64 units never answer", 0.625, 0.5, 320, "Lower the rate", "c"
    )
    assert str(finding) == (
        "BAD  dead in layer1.relu: 40 of 64 units never answer (value 0.625, threshold 0.5, n = 320).\n"
        "     Lower the rate."
    )
    assert str(Finding("note", "plateau", "", "The loss is flat.")) == "NOTE plateau: The loss is flat."


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (100_352, "100,352"), (1e5, "100,000"), (0.0, "0"), (2**30, "1,073,741,824"), (0.12345, "0.1235"),
        (123456.7, "1.235e+05"), (3e38, "3e+38"), (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_counts_are_written_with_all_digits_and_other_numbers_with_four(value: float, said: str) -> None:
    assert Finding("bad", "nonfinite", "", "x", value, value).numbers == f"value {said}, threshold {said}"


def test_json_is_strict_and_has_all_fields() -> None:
    finding = Finding("warn", "nonfinite", "", "x", float("nan"), float("inf"), 3)
    text = json.dumps(finding.to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "level": "warn",
        "kind": "nonfinite",
        "layer": "",
        "message": "x",
        "value": None,
        "threshold": None,
        "n": 3,
        "advice": "",
        "source": "",
    }


def test_kinds_and_levels_are_those_that_programs_know() -> None:
    assert len(set(KINDS)) == len(KINDS) == 33
    with pytest.raises(OptionError, match=r"kind is 'leek'; expected .*; did you mean 'leak'"):
        Finding("bad", "leek", "", "x")


def test_the_worst_come_first_and_equals_keep_their_order() -> None:
    levels = {"a": "note", "b": "bad", "c": "warn", "d": "bad"}
    found = [Finding(level, "leak", "", name) for name, level in levels.items()]  # type: ignore[arg-type]
    assert [finding.message for finding in worst_first(found)] == ["b", "d", "c", "a"]

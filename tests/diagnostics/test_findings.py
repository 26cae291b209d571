"""What a finding holds, says, and gives to other programs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_kit.diagnostics import ModelDiagnostics
from gradcam_kit.diagnostics.findings import KINDS, Finding, worst_first
from gradcam_kit.diagnostics.maths.statistics import binomial_error
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


def test_an_interval_of_a_share_is_wilson_s_and_never_empty() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.0962, abs=1e-4)
    assert binomial_error(0.0, 100) == pytest.approx(0.0370, abs=1e-4)
    assert binomial_error(1.0, 100) == pytest.approx(binomial_error(0.0, 100))
    rng, misses = np.random.default_rng(0), 0
    for share in (0.01, 0.3, 0.99):
        found = rng.binomial(200, share, 2000) / 200
        misses += sum(abs(one - share) > binomial_error(one, 200) for one in found)
    assert misses < 0.06 * 6000


def test_zeros_that_were_sampled_have_an_error() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.randn(16, 3, 32, 32)
    rows, reports = {}, {}
    for exact in (False, True):
        with ModelDiagnostics(model, exact=exact) as diagnostics:
            model(x)
        reports[exact] = diagnostics.report()
        rows[exact] = reports[exact].layers[1]
    error = reports[False].zeros_error(rows[False])
    assert 0 < error < 0.02 * rows[False].elements
    assert abs(rows[False].zeros - rows[True].zeros) <= error
    assert f"{rows[False].zeros}+-{error}" in str(reports[False])
    assert f"{rows[False].zeros}+-{error}" in reports[False]._repr_html_()
    assert reports[False].zeros_error(reports[False].layers[0]) > 0  # none among 4,096 values is not none at all
    assert reports[True].zeros_error(rows[True]) == 0
    assert "+-" not in str(reports[True])
    assert reports[False].to_dict()["sampled"]["1"] < rows[False].elements == reports[True].to_dict()["sampled"]["1"]

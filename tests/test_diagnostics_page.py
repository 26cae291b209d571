"""The examples of docs/diagnostics.md run as they are written, and find what their comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from documents import DOCS, run_examples

from gradcam_kit.diagnostics import check_loss

PAGE = (DOCS / "diagnostics.md").read_text()


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(tmp_path_factory.mktemp("page"))
        names = run_examples(DOCS / "diagnostics.md")
        assert Path("gradients.png").stat().st_size > 1000
    return names


def kinds(findings, *levels):
    return [finding.kind for finding in findings if not levels or finding.level in levels]


def test_the_training_is_healthy(names):
    assert kinds(names["report"].findings, "bad", "warn") == []
    assert names["report"].steps == 8
    assert names["by_heart"] == []


def test_what_is_broken_is_found(names):
    assert "update" in kinds(names["flat"], "bad", "warn")
    backward = names["origin"].backward
    assert (backward.layer, backward.operator, names["origin"].forward) == ("2", "SqrtBackward0", None)
    diverged = names["diverged"].backward
    assert (diverged.layer, diverged.trail[-1].layer) == ("3", "3")
    assert diverged.trail[-1].input > 1e30
    assert not names["unseen"]
    assert not names["loss"].isfinite()
    assert kinds(check_loss(names["model"], (names["images"], names["labels"]), names["likelihood"])) == ["nonfinite"]
    assert names["in_eval"].forward.cause == "buffer running_var"
    assert (names["dead"].kind, names["dead"].layer, names["dead"].level) == ("dead", "1", "bad")
    assert "not-in-optimizer" in names["kinds"]
    assert names["finding"].kind == "softmax-twice"
    assert names["leaks"][0].kind == "leak"


def test_numbers_and_notes(names):
    assert names["gradients"].total_norm > 0
    assert names["maps"].shape == (2, 16, 12, 12)
    assert any("fast path" in note for note in names["hidden"].notes)
    assert names["overhead"].rounds == 3


def test_headings_that_other_pages_link_to_keep_their_names():
    assert {"Why is my loss NaN?", "Why is the loss flat?", "Are my ReLUs dead?"} <= set(
        re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    )


def test_no_example_is_longer_than_a_screen():
    assert all(block.count("\n") <= 13 for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))

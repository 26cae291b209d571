"""`--gradient-rule`: part of what a run is, and of what is measured of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import disk
import pytest
from typer.testing import CliRunner

from gradcam_kit import BaseCAM
from gradcam_kit.cli import app
from gradcam_kit.jobs.work.methods import make_method


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_picture(Path("pictures/a.png"), disk.CAT)


def run(*arguments: str) -> tuple[int, str]:
    """Exit status, and the last line of the errors."""
    command = ["run", "pictures", "--model", "shop:net", "--out", "out", "--workers", "1", *arguments]
    done = CliRunner().invoke(app, command)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, (done.stderr.splitlines() or [""])[-1]


def test_the_rule_is_part_of_the_run_and_another_one_is_refused() -> None:
    assert run("--gradient-rule", "balanced")[0] == 0
    before = Path("out/run.json").read_bytes()
    manifest = json.loads(before)
    assert manifest["gradient_rule"] == manifest["methods"]["grad-cam"]["gradient_rule"] == "balanced"
    status, problem = run()
    assert status == 2
    assert 'different methods.grad-cam.gradient_rule: "balanced" before, null now' in problem
    assert 'gradient_rule: "balanced" before, "exact" now; choose another folder' in problem
    assert Path("out/run.json").read_bytes() == before


def test_what_is_measured_of_a_run_has_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    assert run("--gradient-rule", "balanced")[0] == 0
    monkeypatch.setattr("gradcam_kit.jobs.engines.devices.make_method", partial(_noted, make_method, made))
    done = CliRunner().invoke(app, ["evaluate", "out", "--model", "shop:net", "--metric", "sensitivity-max"])
    assert done.exit_code == 0, done.output
    assert made[-1] == "balanced"


def _noted(make: Callable[..., BaseCAM], made: list[str], *arguments: Any) -> BaseCAM:
    cam = make(*arguments)
    made.append(cam.gradient_rule)
    return cam


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--gradient-rule", "fair"), "gradient_rule is 'fair'; expected 'exact', 'balanced'"),
        (("--gradient-rule", "balanced", "--method", "eigen-cam"), "EigenCAM uses no gradients, so gradient_rule="),
    ],
)
def test_a_rule_that_says_nothing_is_refused_before_anything_is_written(arguments, problem: str) -> None:
    status, said = run(*arguments)
    assert (status, problem in said, Path("out").exists()) == (2, True, False)

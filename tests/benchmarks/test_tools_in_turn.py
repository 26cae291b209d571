"""Every round of `benchmarks diagnostics` measures every tool, so that all meet the same load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from benchmarks import diagnostics
from benchmarks.__main__ import app
from benchmarks.diagnostics import FEW, TOOLS, Tool, step_rows


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which tools were entered, in order; the model is small."""
    monkeypatch.setattr(
        diagnostics,
        "build_model",
        lambda name, device: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 9)),
    )
    return []


def tool(name: str, seen: list[str], fails_at: int = -1) -> Tool:
    @contextmanager
    def block(model: nn.Module, optimizer: Any) -> Iterator[None]:
        seen.append(name)
        if seen.count(name) == fails_at:
            raise RuntimeError("no more")
        yield

    return Tool(block)


def test_all_tools_are_measured_in_turn(seen: list[str]) -> None:
    tools = {name: tool(name, seen) for name in ("a", "b", "c")}
    rows = list(step_rows(tools, "cpu", 2, 4, 3, 1))
    assert "".join(seen) == "cba" + "abc" + "cba" + "abc"
    assert [row.case["work"] for row in rows] == ["a", "b", "c"]
    assert all(set(row.figures) == {"ratio", "plain_ms", "observed_ms", "load"} for row in rows)


def test_one_that_fails_is_skipped_from_then_on(seen: list[str]) -> None:
    tools = {"a": tool("a", seen), "b": tool("b", seen, fails_at=2), "c": tool("c", seen)}
    a, b, c = step_rows(tools, "cpu", 2, 4, 3, 1)
    assert "".join(seen) == "cba" + "abc" + "ca" + "ac"
    assert a.figures
    assert c.figures
    assert "no more" in b.skipped


def test_heavy_tools_take_few_steps_of_each_round() -> None:
    assert {name for name, own in TOOLS.items() if own.steps == FEW} == {
        "wandb.watch, log=all",
        "wandb.watch, log=gradients",
        "transformers' DebugUnderflowOverflow",
    }


@pytest.mark.usefixtures("seen")
def test_a_part_of_the_tools_is_shown_and_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path)
    done = CliRunner().invoke(
        app, ["diagnostics", "--device", "cpu", "--rounds", "1", "--only", "empty", "--batch", "2"]
    )
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []

"""Public names of the diagnostics, and what is said where an extra is missing."""

from __future__ import annotations

import builtins
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import mlp, train

from gradcam_kit import diagnostics
from gradcam_kit.diagnostics import ModelDiagnostics
from gradcam_kit.errors import MissingExtraError


def test_every_name_is_there() -> None:
    assert set(diagnostics.__all__) <= set(dir(diagnostics))
    others = {"DiagnosticsCallback": "lightning", "DiagnosticsTrainerCallback": "transformers"}
    missing = {name for name, package in others.items() if find_spec(package) is None}
    assert all(callable(getattr(diagnostics, name)) for name in diagnostics.__all__ if name not in missing)
    with pytest.raises(AttributeError, match="no attribute 'watch'"):
        diagnostics.watch  # noqa: B018


@pytest.mark.parametrize("missing", ["pandas", "matplotlib"])
def test_a_missing_extra_is_one_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    with ModelDiagnostics(model) as watched:
        model(torch.ones(2, 16))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install \"gradcam-kit\[diagnostics\]\""):
        watched.report().to_pandas() if missing == "pandas" else watched.plot()


def test_a_page(tmp_path: Path) -> None:
    model = mlp()
    with ModelDiagnostics(model) as watched:
        model(torch.ones(2, 16)).sum().backward()
    page = watched.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").split("<svg")[0]
    assert train(mlp(), 1).summary.startswith("1 steps")

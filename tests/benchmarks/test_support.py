"""The support matrix: what counts as explained, and that one case cannot end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import TinyCNN, TinyViT, build
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks import support
from benchmarks.__main__ import app
from benchmarks.support_cases import Case
from benchmarks.support_outcomes import Outcome, save
from gradcam_kit import GradCAM


def explained(make: Any, size: tuple[int, ...] = (16, 16), **options: Any) -> Outcome:
    return support.explain(Case("torchvision:own", "own", make, (size,)), **options)


def test_what_is_explained() -> None:
    found = explained(TinyCNN)
    assert (found.status, found.layer, found.shape, found.reason) == ("ok", "relu2", (8, 8), "")
    assert found.finite
    assert found.varies
    assert found.traceless


def test_what_is_not() -> None:
    flat = explained(
        lambda: build(lambda m, x: m.fc(m.conv(0 * x).mean((2, 3))), conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 5))
    )
    assert (flat.status, flat.reason) == ("failed", "constant map")
    odd = explained(lambda: TinyViT(tokens=7), (16, 16))
    assert odd.status == "left out"
    assert odd.reason.startswith("the model itself does not run")
    none = explained(lambda: build(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(768, 5)))
    assert none.status == "refused"
    assert none.reason.startswith("LayerNotFoundError")
    assert explained(TinyCNN, most_parameters=9).status == "left out"
    assert explained(lambda: 1 / 0).reason.startswith("cannot be built")  # type: ignore[arg-type,return-value]


def test_a_trace_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GradCAM.explain

    def leaving(cam: GradCAM, images: Tensor, targets: Any = None) -> Any:
        cam.model.register_forward_hook(lambda *_: None)
        return whole(cam, images, targets)

    monkeypatch.setattr(GradCAM, "explain", leaving)
    found = explained(TinyCNN)
    assert (found.status, found.reason, found.traceless) == ("failed", "left a trace", False)


def test_the_smallest_size_that_works_counts() -> None:
    case = Case("torchvision:own", "own", lambda: TinyCNN(flatten=64), ((12, 12), (16, 16)))
    assert support.explain(case).size == (16, 16)


def test_a_process_that_dies_or_hangs_ends_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Case("torchvision:none", "own", TinyCNN, ((16, 16),))  # unknown to the process, which dies of it
    [died] = support.run([missing], 1, 300, 10**9)
    assert died.status == "failed"
    assert died.reason.startswith("its process died")
    monkeypatch.setattr(support, "_STARTING", 0.0)
    [slow] = support.run([missing], 1, 0.01, 10**9)
    assert slow.status == "failed"
    assert slow.reason.startswith("took more than")


def test_the_command_puts_its_rows_among_others(tmp_path: Path) -> None:
    out = tmp_path / "support.json"
    save([Outcome("torchvision:zzz", "classification", "refused", "why")], out)
    done = CliRunner().invoke(app, ["support", "--quick", "--only", "resnet18", "--new", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "torchvision:resnet18  layer4 3x3" in done.output
    written = json.loads(out.read_text())
    assert [row["name"] for row in written["architectures"]] == ["torchvision:resnet18", "torchvision:zzz"]
    assert written["summary"] == {"torchvision classification": {"ok": 1, "refused": 1}}
    again = CliRunner().invoke(app, ["support", "--quick", "--only", "resnet18", "--new", "--out", str(out)])
    assert "layer4" not in again.output

"""Runs that differ from a plain training: on a device, without gradients, in half precision, and odd outputs."""

from __future__ import annotations

import pytest
import torch
from models import Built
from torch import Tensor, nn
from torch.nn import functional
from trainings import batches, found, mlp, train

from gradcam_kit.diagnostics import ModelDiagnostics, collecting


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_numbers_of_a_device_are_read_later_and_are_the_same(monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    def rows() -> list[tuple[float, ...]]:
        model = mlp()
        with ModelDiagnostics(model, window=3) as diagnostics:
            for inputs, labels in batches(7):
                nn.functional.cross_entropy(model(inputs + offset), labels).backward()
        return [(row.n, row.mean, row.std, row.min, row.max, row.gradient_norm) for row in diagnostics.report().layers]

    at_once = rows()
    monkeypatch.setattr(collecting, "decides_at_once", lambda x: False)
    for later, now in zip(rows(), at_once, strict=True):
        assert later == pytest.approx(now, rel=1e-4)


def test_nan_on_a_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "decides_at_once", lambda x: False)
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    assert found(train(model, 2), "bad")[0] == ("nonfinite", "2")


def test_inference_mode_and_training_in_one_block() -> None:
    model = mlp()
    with ModelDiagnostics(model) as diagnostics:
        for inputs, labels in batches(4):
            with torch.inference_mode():
                model(inputs)
            nn.functional.cross_entropy(model(inputs), labels).backward()
    report = diagnostics.report()
    assert report.layers[0].n == 4 * 2 * 32
    assert found(report, "bad") == []


def test_float16_close_to_its_limit() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).half()
    with torch.no_grad():
        model[0].weight.fill_(2000.0)
        model[1].weight.fill_(1e-4)
    with ModelDiagnostics(model) as diagnostics:
        model(torch.ones(32, 16).half())
    assert ("exploding", "0") in found(diagnostics.report(), "warn")


def test_outputs_of_every_shape() -> None:
    class Shapes(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"scalar": x.sum(), "vector": x[:, 0], "empty": x[:0], "whole": x.long(), "maps": x.view(4, 2, 2, 4)}

    model = Built(lambda m, x: m.shapes(m.table(x)), table=nn.Embedding(9, 16), shapes=Shapes())
    with ModelDiagnostics(model) as diagnostics:
        model(torch.arange(4))
    report = diagnostics.report()
    rows = {row.name: row for row in report.layers}
    assert rows["shapes.maps"].units == 2
    assert (rows["shapes.scalar"].n, rows["shapes.scalar"].units) == (1, 1)
    assert (rows["shapes.vector"].n, rows["shapes.vector"].units) == (4, 1)
    assert set(dict(report.skipped)) == {"shapes.empty", "shapes.whole"}


def test_units_follow_the_layer_in_front() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1))
    with ModelDiagnostics(model, unit_axis={"2": 1}) as diagnostics:
        model(torch.randn(3, 5, 4, 6))  # four axes, and yet the units are last
    assert [row.unit_axis for row in diagnostics.report().layers] == [3, 3, 1]
    assert [row.units for row in diagnostics.report().layers] == [8, 8, 5]


def test_time_first_recurrent_layers() -> None:
    model = Built(lambda m, x: m.lstm(x), lstm=nn.LSTM(3, 8, num_layers=2))
    with ModelDiagnostics(model) as diagnostics:
        model(torch.randn(7, 5, 3))
    assert {row.name: (row.n, row.units) for row in diagnostics.report().layers} == {
        "lstm[0]": (5, 8), "lstm[1][0]": (5, 8), "lstm[1][1]": (5, 8),
    }  # fmt: skip


def test_gradients_without_the_scale_of_a_scaler() -> None:
    class Scaler:
        def get_scale(self) -> float:
            return 1024.0

    norms = []
    for scale, scaler in ((1.0, None), (1024.0, Scaler())):
        model = mlp()
        with ModelDiagnostics(model, scaler=scaler) as diagnostics:
            for inputs, labels in batches(3):
                (scale * nn.functional.cross_entropy(model(inputs), labels)).backward()
        norms.append([row.gradient_norm for row in diagnostics.report().layers])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize(("overflows", "level"), [(5, "note"), (16, "note"), (17, "bad")])
def test_overflows_in_the_first_steps_of_a_scaler_are_no_alarm(overflows: int, level: str) -> None:
    class Scaler:
        def get_scale(self) -> float:
            return 1.0

    model = mlp()
    with ModelDiagnostics(model, scaler=Scaler()) as diagnostics:
        for inputs, labels in batches(overflows):
            (torch.inf * nn.functional.cross_entropy(model(inputs), labels)).backward()
    (finding,) = [own for own in diagnostics.report().findings if own.kind == "nonfinite"]
    assert finding.level == level


def test_a_gradient_that_is_cut_is_seen_without_an_optimizer() -> None:
    model = Built(
        lambda m, x: m.head(m.trunk(x) + m.side(x).detach()),
        trunk=nn.Linear(16, 8), side=nn.Linear(16, 8), head=nn.Linear(8, 4),
    )  # fmt: skip
    with ModelDiagnostics(model) as diagnostics:
        for inputs, _ in batches(3):
            model(inputs).sum().backward()
    assert found(diagnostics.report(), "bad") == [("no-gradient", "side")]


@pytest.mark.parametrize("given", [False, True])
def test_a_scaler_that_was_not_given_is_said(given: bool) -> None:
    model, scaler = mlp(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with ModelDiagnostics(model, optimizer=optimizer, scaler=scaler if given else None) as diagnostics:
        for inputs, labels in batches(3):
            optimizer.zero_grad()
            scaler.scale(functional.cross_entropy(model(inputs), labels)).backward()
            scaler.step(optimizer)
            scaler.update()
    report = diagnostics.report()
    assert any("GradScaler" in note for note in report.notes) is not given
    assert (report.layers[0].gradient_norm > 10) is not given
    assert train(mlp(), 3).notes == ()

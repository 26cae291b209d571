"""NaN and infinities in a training: what the report says of them, and what it leaves out behind them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trainings import batches, found, mlp, train

from gradcam_kit.diagnostics import ModelDiagnostics, Report, check_loss, collecting, find_nonfinite

NAN = torch.full((32, 16), torch.nan)


def diverged() -> Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x, y = torch.randn(32, 8), 10 * torch.randn(32, 1)
    with ModelDiagnostics(model, optimizer=optimizer) as diagnostics:
        for _ in range(60):
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return diagnostics.report()


def test_a_training_that_diverges_has_no_dead_and_no_constant_layers() -> None:
    report = diverged()
    assert [finding.kind for finding in report.findings] == ["nonfinite"]
    assert [row.dead for row in report.layers] == [None] * 5
    assert report.layers[0].nan > 0


def test_counts_are_written_with_all_digits_and_out_of_how_many() -> None:
    report = diverged()
    [finding] = report.findings
    row = next(row for row in report.layers if row.name == finding.layer)
    assert finding.value == row.nan + row.inf > 100_000
    assert f"{finding.value:,} of {row.elements:,} values are not finite); 4 more layers follow" in finding.message
    assert f"(value {finding.value:,}, threshold 0, n = 1,920)" in str(finding)


def test_a_dead_layer_in_front_of_the_first_nan_is_told() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
        model[4].weight[0, 0] = torch.nan
    kinds = found(train(model, lr=0.0), "bad")
    assert ("dead", "3") in kinds
    assert ("nonfinite", "4") in kinds
    assert not any(kind in ("dead", "constant") and layer > "3" for kind, layer in kinds)


def test_a_layer_that_hides_the_nan_is_not_called_constant() -> None:
    class Hide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nan_to_num()

    model = nn.Sequential(nn.Linear(16, 32), Hide(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0] = 1e-30
        model[0].bias.fill_(1.0)
    assert ("constant", "0") in found(train(model, lr=0.0), "bad")
    with torch.no_grad():
        model[0].bias.fill_(torch.nan)
    kinds = {kind for kind, _ in found(train(model, lr=0.0))}
    assert "nonfinite" in kinds
    assert not kinds & {"dead", "constant", "collapsed", "redundant"}


def test_a_nan_of_an_earlier_window_hides_nothing() -> None:
    def data() -> Iterator[tuple[Tensor, Tensor]]:
        yield NAN, torch.zeros(32, dtype=torch.long)
        yield from batches(40)

    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    with ModelDiagnostics(model, window=10) as diagnostics:
        for inputs, _ in data():
            model(inputs)
    assert {("nonfinite", "0"), ("dead", "3")} <= set(found(diagnostics.report(), "bad"))


def test_on_a_device_outputs_are_counted_not_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "decides_at_once", lambda x: False)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    with ModelDiagnostics(model) as diagnostics:
        for _ in range(3):
            model(NAN)
    [finding] = [own for own in diagnostics.report().findings if own.kind == "nonfinite"]
    assert "values in 3 of its outputs are not finite); 1 more layer follows" in finding.message


def test_a_loss_that_is_nan_with_finite_gradients_is_found_by_check_loss_alone() -> None:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return output.log().mean()

    torch.manual_seed(0)
    model, inputs, labels = mlp(), torch.randn(32, 16), torch.zeros(32, dtype=torch.long)
    with find_nonfinite(model) as origin, ModelDiagnostics(model) as diagnostics:
        value = loss(model(inputs), labels)
        value.backward()
    assert not value.isfinite()
    assert "the value of the loss is not observed" in str(origin)
    assert not any(kind == "nonfinite" for kind, _ in found(diagnostics.report()))
    [finding] = check_loss(model, (inputs, labels), loss)
    assert finding.kind == "nonfinite"
    assert "If none is named, look for a logarithm" in finding.advice


class WithLoss(nn.Module):
    """A model that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).log().mean()


def test_a_loss_inside_of_the_model_is_seen() -> None:
    model = WithLoss()
    with find_nonfinite(model, raise_error=False) as origin:
        model(torch.randn(32, 16))
    assert (origin.forward.layer, origin.forward.kind, origin.forward.cause) == ("", "nan", "computed here")


@pytest.mark.parametrize(
    ("broken", "remedy"),
    [
        (lambda x: (1e3 * x).softmax(1).log().sum(), lambda x: (1e3 * x).log_softmax(1).sum()),
        (lambda x: (-x.abs()).sqrt().sum(), lambda x: (-x.abs()).clamp(min=1e-6).sqrt().sum()),
        (lambda x: (x / (x - x)).sum(), lambda x: (x / (x - x + 1e-6)).sum()),
        (lambda x: (x - x).sqrt().sum(), lambda x: (x - x + 1e-6).sqrt().sum()),
    ],
)
def test_remedies_for_a_loss(broken: object, remedy: object) -> None:
    torch.manual_seed(0)
    model, inputs = mlp(), torch.randn(32, 16)
    with find_nonfinite(model, raise_error=False) as origin:
        broken(model(inputs)).backward()
    assert origin.backward.cause == "outside of any module: the loss"
    with find_nonfinite(model):
        loss = remedy(model(inputs))
        loss.backward()
    assert loss.isfinite()

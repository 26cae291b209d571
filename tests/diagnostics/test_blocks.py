"""ModelDiagnostics as a block: what it refuses, holds and leaves, and the numbers of its rows."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import weakref
from typing import Any

import forked
import pytest
import torch
from models import Built
from torch import nn
from trainings import batches, mlp, train

from gradcam_kit.diagnostics import ModelDiagnostics, Thresholds
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, OptionError


def step(model: nn.Module) -> None:
    inputs, labels = next(batches(1))
    nn.functional.cross_entropy(model(inputs), labels).backward()


def hooks(model: nn.Module) -> int:
    return sum(len(own._forward_hooks) + len(own._forward_pre_hooks) for own in model.modules())


@pytest.mark.parametrize("layers", ["first", None])
@pytest.mark.parametrize("cuts", [[], [1], [7, 8], [10, 20, 30]])
def test_rows_against_numpy(layers: str | None, cuts: list[int]) -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    model = Built(lambda m, x: m.first(x), first=nn.Identity())
    with ModelDiagnostics(model, layers, window=2, exact=True) as diagnostics:
        for part in torch.tensor_split(x, cuts):
            model(part)
    (row,) = diagnostics.report().layers
    values = x.numpy()
    assert (row.n, row.elements, row.units, row.unit_axis) == (40, 200, 5, 1)
    assert row.mean == pytest.approx(values.mean(), rel=1e-12)
    assert row.std == pytest.approx(values.std(), rel=1e-12)
    assert (row.min, row.max) == (values.min(), values.max())


def test_exact_zeros_and_histograms() -> None:
    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).relu()
    model = Built(lambda m, x: m.first(x), first=nn.Identity())
    with ModelDiagnostics(model, exact=True) as diagnostics:
        model(x)
    assert diagnostics.report().layers[0].zeros == int((x == 0).sum())
    assert diagnostics.state_dict()["ledger"].tracks["first"].counts.sum() == x.numel()


def test_gradients_are_medians_of_norms() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    with ModelDiagnostics(model) as diagnostics:
        for factor in (1.0, 5.0, 2.0):
            (factor * model(torch.ones(4, 4)).sum()).backward()
    row = diagnostics.report().layers[1]
    assert (row.gradient_norm, row.gradient_rms) == (4.0, 2.0)


def test_a_report_is_strict_json_a_table_and_text() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    report = train(model, 2)
    parsed = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert parsed["findings"][0]["kind"] == "nonfinite"
    table = report.to_pandas()
    assert list(table["name"]) == [str(i) for i in range(7)]
    assert list(table.columns[:5]) == ["name", "type", "calls", "n", "elements"]
    assert str(report).splitlines()[1].startswith("BAD  nonfinite in 2")
    assert "<table>" in report._repr_html_()
    assert [row.name for row in report.parameters][:2] == ["0.weight", "0.bias"]


def test_report_inside_the_block_and_before_any_step() -> None:
    model = mlp()
    with ModelDiagnostics(model) as diagnostics:
        assert "nothing observed" in str(diagnostics.report())
        step(model)
        assert diagnostics.report().layers[0].n == 32
        step(model)
    assert diagnostics.report().layers[0].n == 64


def test_start_stop_pause_and_reset() -> None:
    model = mlp()
    diagnostics = ModelDiagnostics(model)
    diagnostics.start()
    with pytest.raises(CaptureError, match="started already"):
        diagnostics.start()
    step(model)
    with diagnostics.pause():
        step(model)
    assert diagnostics.report().steps == 1
    diagnostics.reset()
    step(model)
    step(model)
    diagnostics.stop()
    diagnostics.stop()
    assert (diagnostics.report().steps, diagnostics.report().layers[0].n) == (2, 64)
    assert hooks(model) == 0


def test_every_other_step() -> None:
    model = mlp()
    with ModelDiagnostics(model, every=3) as diagnostics:
        for _ in range(7):
            step(model)
    assert diagnostics.report().steps == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_are_gone_after_errors(error: type[BaseException]) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error), ModelDiagnostics(model, optimizer=optimizer):  # noqa: PT012 - the block is what is tested
        step(model)
        raise error
    assert hooks(model) == 0


def test_bad_requests() -> None:
    model = mlp()
    for options in ({"every": 0}, {"window": 0}, {"every": -1}):
        with pytest.raises(OptionError):
            ModelDiagnostics(model, **options)
    with pytest.raises(LayerNotFoundError):
        ModelDiagnostics(model, ["2", "nine*"])
    with pytest.raises(InputError, match="DataParallel"):
        ModelDiagnostics(nn.DataParallel(model))
    with pytest.raises(InputError, match="optimizer"):
        ModelDiagnostics(model, optimizer="sgd")
    with pytest.raises(OptionError):
        Thresholds(dead_bad=-0.1)


@pytest.mark.parametrize("change", [lambda m: m.half(), lambda m: m.append(nn.ReLU()), lambda m: m.to("meta")])
def test_a_changed_model_is_an_error(change: Any) -> None:
    model = mlp()
    with pytest.raises(CaptureError), ModelDiagnostics(model):
        change(model)
    assert hooks(model) == 0


def test_what_never_ran_and_what_has_no_statistics() -> None:
    class Count(nn.Module):
        def forward(self, x: torch.Tensor) -> int:
            return len(x)

    model = Built(lambda m, x: (m.count(x), m.used(x))[1], count=Count(), used=nn.ReLU(), unused=nn.Linear(2, 2))
    with ModelDiagnostics(model) as diagnostics:
        model(torch.randn(4, 3))
    report = diagnostics.report()
    assert report.never_ran == ("unused",)
    assert dict(report.skipped) == {"count": "an int, not a tensor"}
    assert [row.name for row in report.layers] == ["used"]


def test_two_models_in_two_threads() -> None:
    models = [mlp(), mlp()]
    found = {}

    def work(index: int) -> None:
        with ModelDiagnostics(models[index]) as diagnostics:
            for _ in range(3 + index):
                step(models[index])
        found[index] = diagnostics.report().steps

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: 3, 1: 4}


def test_nested_blocks_and_copies_inside_the_block() -> None:
    model = mlp()
    with ModelDiagnostics(model) as outer:
        step(model)
        with ModelDiagnostics(model, "2") as inner:
            step(model)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for copied in copies:
            step(copied)
            assert hooks(copied) == 0
    assert (outer.report().steps, inner.report().steps) == (2, 1)


def test_no_activation_outlives_its_step() -> None:
    model, alive = mlp(), []
    model[3].register_forward_hook(lambda *args: alive.append(weakref.ref(args[-1])))
    with ModelDiagnostics(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)):
        for _ in range(3):
            step(model)
        model(torch.ones(2, 16))
        gc.collect()
        assert [one() for one in alive] == [None] * 4


MEMORY = """
from benchmarks.diagnostics import memory_rows
for row in memory_rows(96):
    print(row.figures["kib_per_layer"].median)
"""


@pytest.mark.long
def test_a_layer_takes_at_most_64_kib_and_memory_does_not_grow() -> None:
    # In a process of its own: the run-time checks of the tests remember types.
    _, before, after = map(float, forked.run(MEMORY).stdout.split())
    assert max(before, after) <= 64
    assert after - before < 4  # of which 1.5 KiB are values of medians, which are thinned out above 256


def test_merging_ranks_changes_neither() -> None:
    ranks = []
    for seed in (0, 1):
        model = mlp()
        with ModelDiagnostics(model, window=2) as diagnostics:
            for inputs, _ in batches(3, seed=seed):
                model(inputs)
        ranks.append(diagnostics)
    rows = [rank.report().layers[0] for rank in ranks]
    before = repr(rows)  # NaN is not equal to itself
    merged = ranks[0].merge(ranks[1].state_dict()).report().layers[0]
    assert merged.n == rows[0].n + rows[1].n
    assert merged.mean == pytest.approx((rows[0].mean + rows[1].mean) / 2, rel=1e-9)
    assert merged.max == max(row.max for row in rows)
    assert repr([rank.report().layers[0] for rank in ranks]) == before


def test_writers_get_windows_and_may_fail() -> None:
    class Writer:
        def __init__(self) -> None:
            self.names: list[str] = []

        def scalar(self, name: str, value: float, step: int) -> None:
            self.names.append(name)
            if len(self.names) > 5:
                raise RuntimeError("disk full")

        def histogram(self, name: str, edges: Any, counts: Any, step: int) -> None:
            assert len(edges) == len(counts) + 1

    writer = Writer()
    train(mlp(), 12, window=3, writer=writer)
    assert writer.names[:3] == ["0/mean", "0/std", "0/gradient_norm"]
    assert len(writer.names) == 6


@pytest.mark.parametrize("kind", ["gradients", "activations", "box", "histogram", "updates", "units"])
def test_plots(kind: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    diagnostics = ModelDiagnostics(model, optimizer=optimizer, window=3)
    with pytest.raises(CaptureError):
        diagnostics.plot(kind)
    with diagnostics:
        for inputs, labels in batches(7):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    drawn = diagnostics.plot(kind)
    drawn.canvas.draw()
    assert drawn.axes

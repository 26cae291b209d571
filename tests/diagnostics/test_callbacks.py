"""Callbacks: a plain loop, Lightning and Hugging Face; the trainings are the same, and no hook is left behind."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from trainings import batches, mlp

from gradcam_kit import GradCAM, HeatmapLogger
from gradcam_kit.diagnostics import JsonWriter, watch_loop
from gradcam_kit.errors import CaptureError, InputError, OptionError


def hooks_of(model: nn.Module) -> int:
    return sum(len(own._forward_hooks) + len(own._forward_pre_hooks) for own in model.modules())


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12) -> list[float]:
    losses = []
    for inputs, labels in batches(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_plain_loop_leaves_a_page_and_lines(tmp_path: Path) -> None:
    plain, model = mlp(), mlp()
    expected = loop(plain, torch.optim.SGD(plain.parameters(), 0.1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch_loop(model, optimizer=optimizer, out=tmp_path / "logs", window=5) as diagnostics:
        assert loop(model, optimizer) == expected
    assert diagnostics.report().steps == 12
    assert hooks_of(model) == 0
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["diagnostics.html", "diagnostics.jsonl"]


def test_a_loop_that_fails_leaves_what_it_had(tmp_path: Path) -> None:
    model = mlp()

    def fail() -> None:
        with watch_loop(model, out=tmp_path, window=2):
            for inputs, _ in batches(3):
                model(inputs)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks_of(model) == 0
    names = [json.loads(line)["name"] for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    assert "layers" in names
    assert (tmp_path / "diagnostics.html").is_file()


def test_wrong_options_are_told_before_the_training() -> None:
    with pytest.raises(OptionError, match="no option 'windows'; did you mean 'window'"):
        watch_loop(mlp(), windows=5).__enter__()
    with pytest.raises(InputError, match="writer is an int"):
        watch_loop(mlp(), writer=3).__enter__()


def test_a_loop_that_calls_only_parts_has_steps_of_its_own() -> None:
    model = nn.ModuleDict({"encoder": mlp(), "head": nn.Linear(8, 8)})
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch_loop(model, optimizer=optimizer, every=2) as diagnostics:
        for inputs, labels in batches(7):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model["head"](model["encoder"](inputs)), labels).backward()
            optimizer.step()
    report = diagnostics.report()
    assert report.steps == 4
    assert next(row for row in report.layers if row.name == "head").n == 4 * 32


def test_gradients_of_a_closure_are_those_of_its_own_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    inputs, labels = next(batches(1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    with watch_loop(model, optimizer=optimizer) as diagnostics:
        before = [own.detach().clone() for own in model.parameters()]
        optimizer.step(closure)
    rows = diagnostics.report().parameters
    for row, own, old in zip(rows, model.parameters(), before, strict=True):
        assert row.gradient_norm == pytest.approx(float(own.grad.norm()), rel=1e-5)
        assert row.norm == pytest.approx(float(old.norm()), rel=1e-5)
        assert (
            row.update_ratio == pytest.approx(float((own.detach() - old).norm() / old.norm()), rel=1e-3)
            or not old.any()
        )
    assert not [one for one in diagnostics.report().findings if one.kind == "no-gradient"]


def lightning_module(fails: bool = False, calls_part: bool = False) -> Any:
    from lightning.pytorch import LightningModule

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.net(inputs)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if fails and index == 3:
                raise ZeroDivisionError
            inputs, labels = batch
            return nn.functional.cross_entropy((self.net if calls_part else self)(inputs), labels)

        def validation_step(self, batch: Any, index: int) -> None:
            (self.net if calls_part else self)(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Net()


def fit(net: Any, folder: Path, callbacks: list[Any]) -> None:
    from lightning.pytorch import Trainer

    data = list(batches(6))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|log_every_n_steps|LeafSpec).*")
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(net, DataLoader(data, batch_size=None), DataLoader(data[:2], batch_size=None))


@pytest.mark.parametrize("calls_part", [False, True])
def test_lightning(calls_part: bool, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: pip install -e .[loggers]")
    from gradcam_kit.diagnostics import DiagnosticsCallback

    plain, net = lightning_module(), lightning_module(calls_part=calls_part)
    fit(plain, tmp_path, [])
    callback = DiagnosticsCallback(out=tmp_path / "logs", window=4)
    with pytest.raises(CaptureError, match="training has not begun"):
        callback.report()
    fit(net, tmp_path, [callback])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), net.parameters(), strict=True))
    report = callback.report()
    assert report.steps == 12  # validation is not counted
    assert report.layers[0].name == "net.0"
    assert [finding for finding in report.findings if finding.level == "bad"] == []
    assert all(row.gradient_norm > 0 for row in report.parameters)
    assert hooks_of(net) == 0
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"diagnostics.html", "diagnostics.jsonl"}


def test_lightning_after_an_error(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: pip install -e .[loggers]")
    from gradcam_kit.diagnostics import DiagnosticsCallback

    net, callback = lightning_module(fails=True), DiagnosticsCallback()
    with pytest.raises(ZeroDivisionError):
        fit(net, tmp_path, [callback])
    assert callback.report().steps == 3
    assert hooks_of(net) == 0


class Classifier(nn.Module):
    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.net, self.fails_at, self.calls = mlp(), fails_at, 0

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ZeroDivisionError
        logits = self.net(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def hugging_face(model: nn.Module, folder: Path, callbacks: list[Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    data = [{"inputs": x, "labels": y} for inputs, labels in batches(4) for x, y in zip(inputs, labels, strict=True)]
    wanted = {
        "output_dir": str(folder), "per_device_train_batch_size": 16, "max_steps": 8, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 3, "disable_tqdm": True, "seed": 0,
        "gradient_accumulation_steps": 2, "logging_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    known = inspect.signature(TrainingArguments).parameters
    arguments = TrainingArguments(**{name: value for name, value in wanted.items() if name in known})
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data[:32], callbacks=callbacks)


def test_hugging_face(tmp_path: Path) -> None:
    for name in ("transformers", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed, and its Trainer needs it")
    from gradcam_kit.diagnostics import DiagnosticsTrainerCallback

    plain, model = Classifier(), Classifier()
    hugging_face(plain, tmp_path, []).train()
    callback = DiagnosticsTrainerCallback(out=tmp_path / "logs", window=4)
    hugging_face(model, tmp_path, [callback]).train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    report = callback.report()
    assert report.steps == 16  # two passes in each of 8 steps, and none of the evaluations
    assert all(row.gradient_norm > 0 for row in report.parameters)
    assert hooks_of(model) == 0
    assert (tmp_path / "logs" / "diagnostics.html").is_file()


def test_hugging_face_after_an_error(tmp_path: Path) -> None:
    for name in ("transformers", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed, and its Trainer needs it")
    from gradcam_kit.diagnostics import DiagnosticsTrainerCallback

    model = Classifier(fails_at=4)
    with pytest.raises(ZeroDivisionError), DiagnosticsTrainerCallback() as callback:
        hugging_face(model, tmp_path, [callback]).train()
    assert callback.report().steps >= 3
    assert hooks_of(model) == 0


def test_heatmaps_in_a_loop_are_not_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    film = HeatmapLogger(
        GradCAM(model, "0"), torch.rand(2, 3, 8, 8), every=2, writer=JsonWriter(tmp_path), features="1"
    )
    with watch_loop(model) as diagnostics:
        for _ in range(4):
            model(torch.rand(5, 3, 8, 8)).sum().backward()
            film.step()
    report = diagnostics.report()
    assert report.steps == 4
    assert {row.n for row in report.layers} == {20}
    assert film.steps == [1, 3]

"""A run inside of ModelDiagnostics is the same run, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from models import Built
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from benchmarks.thresholds.healthy import MODELS
from gradcam_kit.diagnostics import ModelDiagnostics, capture_features, find_nonfinite, monitor_gradients

SLOW = {"demo", "resnet18", "mobilenet_v3_small", "vit_tiny"}
NEEDS = {"resnet18": "torchvision", "mobilenet_v3_small": "torchvision", "vit_tiny": "timm", "gpt2": "transformers"}


class Net(nn.Module):
    """Convolutions, in-place activations, dropout, a shared module and a residual addition."""

    def __init__(self, rerun: bool | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 4)
        self.rerun = rerun

    def block(self, x: Tensor) -> Tensor:
        return self.drop(self.act(self.shared(self.act(self.shared(x)))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        y = self.block(x) if self.rerun is None else checkpoint(self.block, x, use_reentrant=self.rerun)
        y += x
        return self.head(y.mean((2, 3)))


def run(model_of: Callable[[], nn.Module], observed: bool, adam: bool = False, **options: Any) -> list[Any]:
    """Parameters, buffers, optimizer state, losses, random state and modes after a training."""
    torch.manual_seed(0)
    model = model_of().train()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    images, labels = torch.randn(6, 3, 8, 8), torch.randint(0, 4, (6,))
    if options.get("channels_last"):
        images = images.to(memory_format=torch.channels_last)
    losses = []
    with ExitStack() as stack:
        if observed:
            stack.enter_context(
                ModelDiagnostics(model, optimizer=optimizer, window=4, exact=options.get("exact", False))
            )
            if options.get("find"):
                stack.enter_context(find_nonfinite(model))
        for _ in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.get("autocast", False)):
                loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    states = [own for state in optimizer.state.values() for own in state.values() if isinstance(own, Tensor)]
    gradients = [own.grad for own in model.parameters()]
    modes = torch.tensor([module.training for module in model.modules()])
    return [*losses, *model.state_dict().values(), *states, *gradients, modes, torch.get_rng_state()]


CASES = {
    "sgd": {}, "adamw": {"adam": True}, "autocast": {"autocast": True}, "channels last": {"channels_last": True},
    "exact": {"exact": True}, "nonfinite": {"find": True},
}  # fmt: skip


CHECKPOINTED = [(case, rerun) for case in ("sgd", "autocast", "nonfinite") for rerun in (True, False)]


@pytest.mark.parametrize(("case", "rerun"), [*((case, None) for case in CASES), *CHECKPOINTED])
def test_a_run_is_the_same_run(case: str, rerun: bool | None) -> None:
    plain, observed = (run(lambda: Net(rerun), watched, **CASES[case]) for watched in (False, True))
    assert len(plain) == len(observed)
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))


@pytest.mark.parametrize("rerun", [True, False])
def test_checkpointed_passes_count_once(rerun: bool) -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 8, 8)
    reports = []
    for kind in (None, rerun):
        torch.manual_seed(0)
        model = Net(kind)
        with ModelDiagnostics(model) as diagnostics:
            model(images).square().sum().backward()
        reports.append(diagnostics.report())
    for plain, again in zip(reports[0].layers, reports[1].layers, strict=True):
        assert (plain.name, plain.calls, plain.n, plain.mean) == (again.name, again.calls, again.n, again.mean)
        assert plain.gradient_norm == pytest.approx(again.gradient_norm, nan_ok=True)


def test_recurrent_models_and_outputs_of_many_tensors() -> None:
    def model_of() -> nn.Module:
        def forward(m: nn.Module, x: Tensor) -> Tensor:
            output, (hidden, _) = m.lstm(x.flatten(2).mT)
            return m.head(output.mean(1) + hidden[-1])

        return Built(forward, lstm=nn.LSTM(3, 8, batch_first=True), head=nn.Linear(8, 4))

    assert all(torch.equal(a, b) for a, b in zip(run(model_of, False), run(model_of, True), strict=True))


def run_of(name: str, observed: bool, adam: bool, steps: int) -> list[Tensor]:
    """Losses, outputs, parameters, buffers, gradients, optimizer state and random state, with every block or none."""
    torch.manual_seed(0)
    healthy = MODELS[name]
    model = healthy.make().train()
    kind = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer: torch.optim.Optimizer = kind(model.parameters(), lr=1e-3)
    results = []
    with ExitStack() as stack:
        if observed:
            diagnostics = ModelDiagnostics(model, optimizer=optimizer, window=2)
            blocks = (
                find_nonfinite(model),
                capture_features(model, gradients=True, keep="stats"),
                monitor_gradients(model),
            )
            for block in (diagnostics, *blocks):
                stack.enter_context(block)
        for inputs, target in healthy.data(steps, 0):
            optimizer.zero_grad()
            output = model(inputs)
            loss = healthy.loss(output, target)
            loss.backward()
            optimizer.step()
            results += [loss.detach(), *(own.detach() for own in tree_leaves(output) if isinstance(own, Tensor))]
    states = [own for state in optimizer.state.values() for own in state.values() if isinstance(own, Tensor)]
    gradients = [own.grad for own in model.parameters() if own.grad is not None]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return [*results, *model.state_dict().values(), *states, *gradients, torch.get_rng_state()]


@pytest.mark.parametrize(
    ("name", "adam"),
    [
        pytest.param(name, adam, marks=pytest.mark.exhaustive if name in SLOW and not adam else ())
        for name in sorted({*MODELS} - {"demo, trained on"})
        for adam in (False, True)
    ],
)
def test_each_healthy_model_trains_the_same_inside_of_every_block(name: str, adam: bool) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"))
    steps = 2 if name in SLOW else 20
    plain, observed = (run_of(name, watched, adam, steps) for watched in (False, True))
    assert len(plain) == len(observed) > 2 * steps
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))

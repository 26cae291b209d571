"""A process that is forked while another thread explains can explain, and its models are as nobody had touched them."""

import os
import threading
import time
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradcam_kit import GradCAM, ScoreCAM
from gradcam_kit.capture import attaching, holding_hooks

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork"),
]
IMAGES = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)


class Waiting(nn.Module):
    """Waits in its pass, in one thread alone, until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.inside, self.go, self.thread = threading.Event(), threading.Event(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if threading.get_ident() == self.thread:
            self.inside.set()
            self.go.wait(60)
        return x


def make() -> nn.Sequential:
    torch.manual_seed(0)
    conv, waiting = nn.Conv2d(3, 4, 3), Waiting()
    model = nn.Sequential(conv, nn.ReLU(), waiting, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return model.train()


def succeeds_in_fork(work: Callable[[], bool]) -> bool:
    """Whether `work` returns True in a forked process, within half a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


@pytest.mark.parametrize("whose", ["another model", "the same model"])
def test_a_fork_while_a_thread_explains(whose: str) -> None:
    busy = make()
    other = make() if whose == "another model" else busy
    expected = ScoreCAM(make(), "0")(IMAGES, 1)
    waiting = busy[2]

    def explain() -> None:
        waiting.thread = threading.get_ident()
        GradCAM(busy, "0")(IMAGES, 1)

    thread = threading.Thread(target=explain)
    thread.start()
    assert waiting.inside.wait(60)

    def work() -> bool:
        flags = all(parameter.requires_grad for parameter in busy.parameters()) and busy.training
        flags &= not any(module._forward_hooks or module._forward_pre_hooks for module in busy.modules())
        return flags and waiting.count == 0 and torch.equal(ScoreCAM(other, "0")(IMAGES, 1), expected)

    try:
        assert succeeds_in_fork(work)
        assert not busy.training  # here the thread goes on
    finally:
        waiting.go.set()
        thread.join()
    assert busy.training


def test_a_fork_inside_of_a_call() -> None:
    # As a data loader does that a target starts.
    model, results = make(), []

    def target(logits: Tensor) -> Tensor:
        if not results:
            results.append(succeeds_in_fork(lambda: bool(GradCAM(make(), "0")(IMAGES, 1).isfinite().all())))
        return logits[:, 1]

    GradCAM(model, "0")(IMAGES, target)
    assert results == [True]
    assert succeeds_in_fork(lambda: bool(GradCAM(model, "0")(IMAGES, 1).isfinite().all()))


def test_a_fork_while_a_thread_protects_copies() -> None:
    model, held, go = make(), threading.Event(), threading.Event()

    def hold() -> None:
        with attaching._lock:
            held.set()
            go.wait(60)

    def work() -> bool:
        seen: list[nn.Module] = []
        with holding_hooks(protect_copies=True) as attach:
            attach.after(model[1], lambda module, *_: seen.append(module))
            model(IMAGES)
        return seen == [model[1]] and not model[1]._forward_hooks

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        assert succeeds_in_fork(work)
    finally:
        go.set()
        thread.join()

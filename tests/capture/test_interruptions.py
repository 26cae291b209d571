"""An exception that comes once reaches the caller, wherever it comes, and no work is done again in silence."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gradcam_kit import AblationCAM, GradCAM, ScoreCAM, compare, explain_folder
from gradcam_kit.capture.model import memory_format
from gradcam_kit.errors import InputError, interruption, is_out_of_memory
from gradcam_kit.metrics import METRICS, Metric

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms on this system")
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


class LimitError(Exception):
    pass


def raising(error: type[Exception]) -> Callable[..., None]:
    def handler(signum: int, frame: Any) -> None:
        raise error("contiguous out of memory")  # words of other errors

    return handler


@pytest.fixture(params=[LimitError, TimeoutError, RuntimeError, MemoryError], ids=lambda error: error.__name__)
def alarm(request: pytest.FixtureRequest) -> Iterator[type[Exception]]:
    """The exception that the handler of SIGALRM raises."""
    before = signal.signal(signal.SIGALRM, raising(request.param))
    yield request.param
    signal.signal(signal.SIGALRM, before)


class Net(nn.Module):
    """In pass `at` and only there, `event` happens."""

    def __init__(self, at: int, event: Callable[[], None] = lambda: signal.raise_signal(signal.SIGALRM)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.calls = nn.Conv2d(3, 6, 3), nn.Linear(6, 3), 0
        self.at, self.event = at, event

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        maps = self.conv(x)
        if self.calls == self.at:
            self.event()
        return self.fc(maps.relu().mean((2, 3)))


def limit() -> None:
    raise LimitError("once")


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, AblationCAM])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_handler_that_raises_in_a_pass(alarm: type[Exception], method: Any, at: int, monkeypatch) -> None:
    monkeypatch.setattr(memory_format, "_SMALLEST", 1)
    model = Net(at).eval()
    cam = method(model, "conv", batch_size=2)
    for _ in range(3):
        if model.calls < at:
            try:
                cam(IMAGES, 1)
            except alarm:
                break
    else:
        pytest.fail(f"swallowed in pass {at} of {model.calls}")
    assert model.calls == at
    assert not model.conv._forward_hooks
    assert model not in memory_format._refused


@pytest.mark.parametrize("at", [1, 2])
def test_an_exception_without_a_handler_that_comes_once(at: int) -> None:
    for error in (LimitError, RuntimeError, ValueError):

        def event(error: type[Exception] = error) -> None:
            raise error("once")

        for model in (Net(at, event).eval(), Net(at, event).eval()):
            with pytest.raises(error, match="once"):
                AblationCAM(model, "conv")(IMAGES, 1)
            model.calls = at - 1
            with pytest.raises(error, match="once"):
                GradCAM(model)(IMAGES)


def test_a_handler_that_raises_in_a_hook(alarm: type[Exception]) -> None:
    model = Net(0).eval()
    handle = model.conv.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGALRM))
    with pytest.raises(alarm):
        GradCAM(model)(IMAGES)
    handle.remove()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_handler_that_raises_while_a_batch_is_halved(alarm: type[Exception]) -> None:
    def event() -> None:
        model.event = lambda: signal.raise_signal(signal.SIGALRM)
        model.at += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Net(2, event).eval()
    with pytest.raises(alarm):
        ScoreCAM(model, "conv", batch_size=4)(IMAGES, 1)
    assert model.calls == 3


def test_a_handler_that_raises_in_the_other_memory_format(alarm: type[Exception], monkeypatch) -> None:
    monkeypatch.setattr(memory_format, "_SMALLEST", 1)

    def event() -> None:
        model.event = lambda: signal.raise_signal(signal.SIGALRM)
        model.at += 1
        torch.ones(2, 3).mT.view(-1)

    model = Net(1, event).eval()
    with pytest.raises(alarm):
        GradCAM(model, "conv")(IMAGES, 1)
    assert model.calls == 2
    assert model not in memory_format._refused


def interrupting(heatmaps: Tensor) -> Any:
    signal.raise_signal(signal.SIGALRM)


def test_a_handler_that_raises_in_a_metric_or_a_comparison(alarm: type[Exception]) -> None:
    with pytest.raises(alarm):
        compare(Net(0).eval(), IMAGES, ["grad-cam"], "conv", 1, [Metric("alarm", interrupting, "")], cost=False)
    with pytest.raises(alarm):
        compare(Net(4).eval(), IMAGES, "all", "conv", 1, cost=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    return tmp_path


class Once(Net):
    """The event happens once, when three images come together, or in the first pass after `from_module` copied it."""

    happened: list[int]

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == self.at and not self.happened:
            self.happened.append(1)
            self.event()
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("at", [1, 3])
def test_a_handler_that_raises_in_a_run(alarm: type[Exception], folder: Path, at: int) -> None:
    Once.happened = []
    with pytest.raises(alarm):
        explain_folder(folder / "in", Once(at).eval(), folder / "out", layers="conv", transform={"size": 8}, quiet=True)
    assert Once.happened == [1]


def test_an_exception_that_comes_once_in_a_run(folder: Path) -> None:
    Once.happened = []
    model = Once(3, limit).eval()
    with pytest.raises(LimitError):
        explain_folder(folder / "in", model, folder / "out", layers="conv", transform={"size": 8}, quiet=True)
    run = explain_folder(folder / "in", model, folder / "out", layers="conv", transform={"size": 8}, quiet=True)
    assert [row["status"] for row in run] == ["ok"] * 3


class Single(Net):
    """Takes one image at once."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise LimitError("one image at once")
        return super().forward(x)


def test_a_model_that_takes_single_images_still_runs(folder: Path) -> None:
    run = explain_folder(
        folder / "in", Single(0).eval(), folder / "out", layers="conv", transform={"size": 8}, quiet=True
    )
    assert [row["status"] for row in run] == ["ok"] * 3


def test_a_handler_that_raises_in_a_metric_of_a_run(alarm: type[Exception], folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(METRICS, "alarm", Metric("alarm", interrupting, ""))
    options = {"layers": "conv", "transform": {"size": 8}, "quiet": True}
    with pytest.raises(alarm):
        explain_folder(folder / "in", Net(0).eval(), folder / "out", metrics="alarm", **options)


class Handler:
    def __call__(self, signum: int, frame: Any) -> None:
        plain(signum)


def plain(signum: int, frame: Any = None) -> None:
    raise ValueError("plain")


@pytest.mark.parametrize("handler", [plain, Handler(), lambda *frames: plain(0)], ids=["function", "object", "any"])
def test_what_tells_an_interruption(handler: Any) -> None:
    before = signal.signal(signal.SIGALRM, handler)
    with pytest.raises(ValueError, match="plain") as caught:
        signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)
    assert interruption(caught.value) is caught.value
    wrapped = InputError("wrapped")
    wrapped.__cause__ = caught.value
    assert interruption(wrapped) is caught.value


def test_what_is_no_interruption() -> None:
    with pytest.raises(ValueError, match="plain") as caught:
        plain(1)
    assert interruption(caught.value) is None
    assert not is_out_of_memory(LimitError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA out of memory"))

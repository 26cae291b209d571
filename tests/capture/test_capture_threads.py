"""Many CAM objects and many threads on one model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from evidence import ON_CNNS, quick
from models import Apply, Restless, build, images, seeded, tiny
from representatives import each
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import GradCAM, ScoreCAM

BATCHES = [images(1 + seed % 3, size=(8, 8), seed=seed) for seed in range(12)]


def test_objects_on_one_model_do_not_meet() -> None:
    model = tiny()
    kinds = [(GradCAM, "relu2"), (GradCAM, "stage1"), (ScoreCAM, "relu2"), (GradCAM, ["relu1", "stage2"])]
    cams = [method(model, layers) for method, layers in kinds]
    for batch in BATCHES[:4]:
        for cam, (method, layers) in zip(cams, kinds, strict=True):
            model(batch)  # plain passes in between are nobody's business
            assert torch.equal(cam(batch), method(tiny(), layers)(batch))


def test_a_call_inside_of_a_call_is_right() -> None:
    # A target that explains the same model, as a metric might.
    model, inner = tiny(), {}

    def target(logits: Tensor) -> Tensor:
        inner["maps"] = GradCAM(model, "stage1")(BATCHES[2])
        return logits[:, 1]

    with unchanged(model):
        outer = GradCAM(model, "relu2")(BATCHES[2], target)
    assert torch.equal(outer, GradCAM(tiny(), "relu2")(BATCHES[2], 1))
    assert torch.equal(inner["maps"], GradCAM(tiny(), "stage1")(BATCHES[2]))


@pytest.mark.parametrize("name", each(ON_CNNS))
def test_threads_on_one_model_get_what_they_get_alone(name: str) -> None:
    model = seeded(Restless()).train()
    shared = quick(name)(model, "relu2")
    alone = [quick(name)(seeded(Restless()), "relu2")(batch) for batch in BATCHES[:6]]
    with unchanged(model), ThreadPoolExecutor(4) as pool:
        own = list(pool.map(lambda batch: quick(name)(model, "relu2")(batch), BATCHES[:6]))
        together = list(pool.map(shared, BATCHES[:6]))
    for expected, *found in zip(alone, own, together, strict=True):
        assert all(torch.equal(heatmaps, expected) for heatmaps in found)


class Meeting:
    """A module's function that waits, in the thread that explains, until another thread has finished its pass."""

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self.model, self.batch = model, batch
        self.explaining = threading.get_ident()
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if threading.get_ident() == self.explaining:
            thread = threading.Thread(target=self.plain_pass)
            thread.start()
            thread.join(10)
        return x

    @torch.no_grad()
    def plain_pass(self) -> None:
        self.seen.append(self.model(self.batch))


@pytest.mark.parametrize("name", each(ON_CNNS))
def test_a_plain_pass_of_another_thread_meanwhile_is_not_disturbed(name: str) -> None:
    body = tiny()
    model = build(
        lambda m, x: m.fc(m.meet(m.relu(m.layer(m.meet(x)))).mean((2, 3))),
        layer=body.stage1, relu=body.relu1, fc=body.fc, meet=Apply(lambda x: x),
    )  # fmt: skip
    expected, heatmaps = model(BATCHES[2]), quick(name)(model, "relu")(BATCHES[1])
    meeting = model.meet.forward = Meeting(model, BATCHES[2])
    assert torch.equal(quick(name)(model, "relu")(BATCHES[1]), heatmaps)
    assert len(meeting.seen) >= 2
    assert all(torch.equal(seen, expected) for seen in meeting.seen)

"""Metrics on inputs whose channels are not the first axis: they follow the axes of the heatmaps, or say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build
from torch import Tensor, nn

from gradcam_kit import GradCAM, compare
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import ShapeError
from gradcam_kit.metrics import METRICS, MetricInput, average_drop

NAMES = ["average-drop", "deletion", "insertion", "coherency"]


def clips(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def volumes(frames_first: bool) -> nn.Module:
    return build(
        lambda m, x: m.fc(m.layer(x.transpose(1, 2) if frames_first else x).relu().mean((2, 3, 4))),
        layer=nn.Conv3d(3, 6, 3, 2, 1),
        fc=nn.Linear(6, 4),
    )


def spectra(channel: bool) -> nn.Module:
    return build(
        lambda m, x: m.fc(m.layer(x if channel else x[:, None]).relu().mean((2, 3))),
        layer=nn.Conv2d(1, 6, 3, 2, 1),
        fc=nn.Linear(6, 4),
    )


CASES: dict[str, tuple[Any, Tensor, Any]] = {
    "frames, then channels": (volumes, clips(2, 5, 3, 16, 16), lambda x: x.transpose(1, 2)),
    "as many frames as channels": (volumes, clips(2, 3, 3, 16, 16), lambda x: x.transpose(1, 2)),
    "a spectrogram without channels": (lambda own: spectra(not own), clips(2, 24, 20), lambda x: x[:, None]),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_same_model_with_its_channels_in_front(case: str) -> None:
    make, x, moved = CASES[case]
    found = compare(make(True), x, "grad-cam", targets=[1, 2], metrics=NAMES, cost=False)
    expected = compare(make(False), moved(x).contiguous(), "grad-cam", "layer", [1, 2], NAMES, cost=False)
    torch.testing.assert_close(found.heatmaps["grad-cam"], expected.heatmaps["grad-cam"])
    for table, other in ((found.measured, expected.measured), (found.baselines, expected.baselines)):
        assert table.keys() == other.keys()
        for label, numbers in table.items():
            for name, result in numbers.items():
                torch.testing.assert_close(result.values, other[label][name].values, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_metrics_take_the_channels_first_and_say_so(case: str) -> None:
    make, x, moved = CASES[case]
    model = make(True)
    heatmaps = GradCAM(model)(x, 1)
    with rescoring(model, x, 1) as rescore:
        assert torch.equal(rescore.inputs.images, moved(x))
        with pytest.raises(ShapeError, match=r"metrics take \(n, c, \*positions\).*rescore\.inputs\.images"):
            METRICS["deletion"](MetricInput(heatmaps, x, rescore))
        if x.ndim > 3 and x.shape[1] == x.shape[2]:  # the shapes alone fit
            with pytest.raises(ShapeError, match=r"metrics take \(n, c, \*positions\).*rescore\.inputs\.images"):
                average_drop(heatmaps, x, rescore)
        images = rescore.inputs.images
        scores = rescore(images * heatmaps[:, None], torch.arange(2))
        result = average_drop(heatmaps, images, rescore)
    with torch.no_grad():
        own = heatmaps if x.ndim == 3 else heatmaps[:, :, None]
        by_hand = model(x * own).softmax(1)[:, 1]
        before = model(x).softmax(1)[:, 1]
    torch.testing.assert_close(scores, by_hand)
    torch.testing.assert_close(result.values, 100 * (before - by_hand).clamp(min=0) / before)

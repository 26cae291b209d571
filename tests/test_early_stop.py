"""Methods of activations alone do not run what comes behind their layers, unless someone asked for scores."""

import pytest
import torch
from models import images, tiny
from torch import nn
from traces import unchanged

from gradcam_kit import METHODS, EigenCAM, GradCAM, explain_all
from gradcam_kit.errors import CaptureError
from gradcam_kit.types import Evidence

ALONE = [name for name, method in METHODS.items() if method.class_agnostic and method.needs is Evidence.NONE]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.runs = tiny(), 0
        self.body.fc.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.runs += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_there_are_such_methods():
    assert {"eigen-cam", "lafam", "kpca-cam", "fem"} <= set(ALONE)


@pytest.mark.parametrize("name", ALONE)
def test_the_head_runs_only_when_scores_are_asked_for(name):
    model, x = Counting(), images()
    cam = METHODS[name](model, "body.relu1")
    first = cam(x)
    assert model.runs == 1  # a whole pass shows that the layer runs once
    with unchanged(model, x):
        assert torch.equal(cam(x), first)
    assert model.runs == 1
    explained = cam.explain(x)
    assert model.runs == 2
    assert explained.scores is not None
    assert torch.equal(explained.heatmaps, first)
    assert cam(x, torch.tensor([[0, 1]] * len(x))).shape[:2] == (len(x), 2)
    assert model.runs == 3
    cam(images(size=(24, 24)))
    assert model.runs == 4


def test_who_needs_the_output_gets_it():
    model, x = Counting(), images()
    cams = [EigenCAM(model, "body.relu1"), GradCAM(model, "body.relu2")]
    for _ in range(2):
        explain_all(cams, x)
    assert model.runs == 2
    explain_all([cams[0], METHODS["lafam"](model, "body.relu1")], x)  # lafam meets the model for the first time
    assert model.runs == 3


def test_a_layer_that_runs_twice_is_an_error_on_every_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.layer(self.layer(x)).mean((2, 3)))

    cam = EigenCAM(Twice(), "layer")
    for _ in range(3):
        with pytest.raises(CaptureError, match="ran 2 times"):
            cam(images())

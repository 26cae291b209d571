"""The probability of a class is what the model's outputs are: by evidence, of each model its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import build, images, seeded
from torch import Tensor, nn

from gradcam_kit import METHODS, GradCAM, ScoreCAM, compare
from gradcam_kit.capture import rescoring
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


def logits(x: Tensor) -> Tensor:
    return x


HEADS: dict[str, tuple[Any, str | None, Any]] = {
    "softmax": (logits, None, lambda z: z.softmax(1)),
    "sigmoid in the configuration": (logits, "multi_label_classification", torch.sigmoid),
    "sigmoid as the last operation": (torch.sigmoid, None, torch.sigmoid),
    "softmax as the last operation": (lambda z: z.softmax(1), None, lambda z: z.softmax(1)),
    "a regression": (logits, "regression", logits),
    "sigmoid, then a slice": (lambda z: z.sigmoid()[:, :4], None, lambda z: z.sigmoid()[:, :4]),
}


def network(head: str) -> nn.Module:
    last, problem, _ = HEADS[head]
    model = seeded(build(
        lambda m, x: last(m.fc(m.layer(x).relu().mean((2, 3)))), layer=nn.Conv2d(3, 6, 3, 2, 1), fc=nn.Linear(6, 5)
    ))  # fmt: skip
    if problem:
        model.config = SimpleNamespace(problem_type=problem)
    return model


def expected(model: nn.Module, head: str, x: Tensor) -> Tensor:
    """The probabilities by hand."""
    with torch.no_grad():
        return HEADS[head][2](model.fc(model.layer(x).relu().mean((2, 3))))  # type: ignore[operator]


class Shown(BaseCAM):
    """Keeps the probabilities of the negated images."""

    needs = Evidence.RESCORE
    kept: Any = None

    def saliency(self, layer: LayerCapture) -> Tensor:
        index = torch.arange(len(layer.images))
        type(self).kept = layer.rescore_probability(-layer.images, index)
        return layer.activations.sum(1)


@pytest.mark.parametrize("head", HEADS)
def test_rescoring_and_methods_score_what_the_outputs_are(head: str) -> None:
    model, x = network(head), images()
    with rescoring(model, x, 1) as rescore:
        found = rescore(-x, torch.arange(3))
        assert rescore.predicts is not None
    torch.testing.assert_close(found, expected(model, head, -x)[:, 1])
    Shown(model, "layer")(x, 1)
    torch.testing.assert_close(Shown.kept, found)


@pytest.mark.parametrize("head", HEADS)
def test_score_cam_by_probability_is_the_one_of_the_same_target_by_hand(head: str) -> None:
    model, x = network(head), images()
    to_probability = logits if HEADS[head][0] is not logits else HEADS[head][2]
    cam = ScoreCAM(model, "layer", weighting="probability")
    torch.testing.assert_close(cam(x, 1), cam(x, lambda output: to_probability(output)[:, 1]))


@pytest.mark.parametrize("name", ["group-cam", "sess"])
def test_other_methods_by_probability_follow_the_kind(name: str) -> None:
    options = {"groups": 3} if name == "group-cam" else {"scales": 2}
    plain, multi = network("softmax"), network("sigmoid in the configuration")
    found = [METHODS[name](model, "layer", **options).explain(images(), 1) for model in (plain, multi)]
    saliency = [one.saliency.get("layer", one.heatmaps) for one in found]
    assert not torch.allclose(*saliency)


def test_a_kind_that_is_named_counts_before_the_evidence() -> None:
    model, x = network("sigmoid in the configuration"), images()
    with rescoring(model, x, 1, scores="softmax") as rescore:
        torch.testing.assert_close(rescore(x, torch.arange(3)), model(x).softmax(1)[:, 1].detach())


@pytest.mark.parametrize("metric", ["average-drop", "deletion", "insertion"])
@pytest.mark.parametrize("head", ["sigmoid as the last operation", "sigmoid in the configuration"])
def test_methods_of_another_model_are_measured_by_what_its_outputs_are(metric: str, head: str) -> None:
    main, other, x = network("softmax"), network(head), images()
    methods = {"main": GradCAM(main, "layer"), "other": GradCAM(other, "layer")}
    options: dict[str, Any] = {"targets": [1, 2, 3], "metrics": metric, "baselines": False, "cost": False}
    together = compare(main, x, methods, **options)
    for label, model in (("main", main), ("other", other)):
        alone = compare(model, x, {label: methods[label]}, **options)
        found = together.measured[label][metric].values
        torch.testing.assert_close(found, alone.measured[label][metric].values, equal_nan=True)
        assert torch.equal(together.heatmaps[label], alone.heatmaps[label])
    assert together.score_kind == "softmax"

"""Whose classes, whose scores: what does not fit is refused, what would mean nothing is flagged, and numbers say it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from metric_cases import CLASSES, SIZE, measure, standard_case
from models import images, tiny

from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import InputError, ShapeError
from gradcam_kit.metrics import METRICS, MetricInput, Status, parameter_randomization

SHARES = ("average-drop", "average-increase", "average-gain", "adcc", "arcc")


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_shares_of_what_is_no_probability_are_flagged(name, bad):
    with standard_case() as case:
        expected = measure(METRICS[name], case)
        assert expected.ok.all()

        def rescore(rows, index):
            return case.rescore(rows, index).masked_fill(index == 1, bad)

        found = measure(METRICS[name], replace(case, rescore=rescore))
    assert found.status.tolist() == [Status.OK, Status.NAN, Status.OK]
    assert found.values[1].isnan()
    torch.testing.assert_close(found.mean, expected.values[[0, 2]].mean())


@pytest.mark.parametrize("name", SHARES)
def test_logits_are_no_probabilities(name):
    x, model = images(size=SIZE), tiny()
    with torch.no_grad():
        model.fc.bias -= 100
    cam = GradCAM(model, "relu1")
    with rescoring(model, x, CLASSES, probability=False) as rescore:
        found = METRICS[name](MetricInput(cam(x, CLASSES), x, rescore, explain=cam))
    assert found.status.tolist() == [Status.NAN] * 3


def test_scores_are_those_of_the_same_images():
    x = images(size=SIZE)
    heatmaps = GradCAM(tiny(), "relu1")(x)
    with rescoring(tiny(), x) as rescore:
        MetricInput(heatmaps, x.clone(), rescore)
        with pytest.raises(
            ShapeError, match=r"rescore was made for images of shape \(3, 3, 13, 14\).*\(2, 3, 13, 14\)"
        ):
            MetricInput(heatmaps[:2], x[:2], rescore)
        with pytest.raises(InputError, match="rescore was made for other images"):
            MetricInput(heatmaps, x.flip(0), rescore)


def test_a_method_that_runs_again_keeps_its_classes():
    model, x = tiny(), images(size=SIZE)
    cam = GradCAM(model, "relu1")
    heatmaps = cam(x, CLASSES)
    shown = x * heatmaps[:, None]
    assert (cam.explain(shown).targets != CLASSES).any()
    with rescoring(model, x, CLASSES) as rescore:
        found, fixed, following = (
            METRICS["coherency"](MetricInput(heatmaps, x, rescore, explain=explain))
            for explain in (cam, lambda changed: cam(changed, CLASSES), lambda changed: cam(changed))
        )
    assert torch.equal(found.values, fixed.values)
    assert not torch.equal(found.values, following.values)
    with pytest.raises(InputError, match="explain would use the class predicted for each changed image"):
        MetricInput(heatmaps, x, explain=cam)
    with rescoring(model, x, lambda logits: logits[:, 0]) as rescore:
        bound = MetricInput(heatmaps, x, rescore, explain=cam).explain
    torch.testing.assert_close(bound(shown), cam(shown, 0))


def test_randomized_models_predict_nothing_that_could_be_explained():
    x = images(2)
    with pytest.raises(InputError, match="explain would use the class that the random model predicts"):
        parameter_randomization(tiny(), GradCAM(tiny(), "relu2"), x)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "masks" not in metric.needs])
def test_numbers_say_where_their_classes_come_from(name):
    with standard_case() as case:
        settings = measure(METRICS[name], case).settings
    asks_the_model = {"rescore", "predicts", "explain"} & set(METRICS[name].needs)
    assert settings.get("classes") == ("given" if asks_the_model else None)

"""`rescoring`: scores of changed images for classes that are fixed once, and a model left as it was."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from models import Restless, conv_model, images, seeded, tiny
from torch import nn
from traces import unchanged
from waits import device, on_device

from gradcam_kit.capture import rescoring
from gradcam_kit.errors import ClassIndexError, OptionError, ShapeError, TargetError
from gradcam_kit.targets import ClassLogit, FinerTarget, TopK
from gradcam_kit.targets.scores import class_scores

INDEX = torch.tensor([2, 0, 0, 1, 2])


def test_rows_are_scored_by_the_class_of_their_own_sample() -> None:
    model, x, classes = tiny(), images(), torch.tensor([3, 0, 4])
    rows = images(5, seed=7)
    with torch.no_grad():
        probabilities = model(rows).softmax(1)
    for batch_size in (1, 2, 64):
        with rescoring(model, x, classes, batch_size=batch_size) as rescore:
            torch.testing.assert_close(rescore(rows, INDEX), probabilities.gather(1, classes[INDEX, None])[:, 0])
            predicted = probabilities.argmax(1) == classes[INDEX]
            assert rescore.predicts(rows, INDEX).tolist() == predicted.float().tolist()


def test_the_predicted_class_is_that_of_the_unchanged_image() -> None:
    model, x = tiny(), images()
    predicted = model(x).argmax(1)
    with rescoring(model, x) as rescore:
        assert torch.equal(rescore.classes, predicted)
        assert rescore.settings == {"score": "ClassProbability", "classes": "predicted"}
        sample_index = torch.arange(3)
        assert rescore.predicts(x, sample_index).tolist() == [1, 1, 1]
        changed = model(-x).softmax(1)
        torch.testing.assert_close(rescore(-x, sample_index), changed.gather(1, predicted[:, None])[:, 0])


def test_where_logits_are_nan_no_class_is_predicted() -> None:
    def broken(logits: torch.Tensor) -> torch.Tensor:
        logits[1, 2] = torch.nan
        return logits

    for classes in (5, 1):
        head = broken if classes == 5 else lambda logits: logits[:, :1] * torch.tensor([[1.0], [torch.nan], [1.0]])
        model, x = conv_model(output=head), images()
        with rescoring(model, x, [0, 0, 0]) as rescore:
            assert rescore.predicts(x, torch.arange(3)).isnan().tolist() == [False, True, False]


def test_outputs_that_are_probabilities_already_are_scored_as_they_are() -> None:
    for output, kind in (
        (lambda logits: logits.softmax(1), "raw"),
        (lambda logits: logits.log_softmax(1), "softmax"),
        (lambda logits: logits, "softmax"),
        (lambda logits: logits.sigmoid(), "raw"),
        (lambda logits: logits.softmax(1)[:, :1], "raw"),
        (lambda logits: logits[:, :1], "sigmoid"),
    ):
        model, x = conv_model(output=output), images()
        with rescoring(model, x, 0) as rescore:
            expected = class_scores(model(x).detach(), kind)[:, 0]
            torch.testing.assert_close(rescore(x, torch.arange(3)), expected)
        several = model(x).shape[1] > 1
        assert (rescore.scores, ", raw" in rescore.settings["score"]) == (kind, kind == "raw" and several)


def test_logits_are_looked_at_once_in_a_block() -> None:
    with device() as seen:
        model, x = on_device(tiny()), on_device(images())
        for _ in range(2):
            seen.waits.clear()
            with rescoring(model, x):
                pass
            assert len(seen.waits) == 1


def test_kinds_of_scores() -> None:
    model, x, sample_index = tiny(), images(), torch.arange(3)
    logits = model(x).detach()
    for targets, options, expected in (
        (2, {}, logits.softmax(1)[:, 2]),
        (2, {"probability": False}, logits[:, 2]),
        (ClassLogit(2), {}, logits.softmax(1)[:, 2]),
        (ClassLogit(2), {"probability": False}, logits[:, 2]),
        (FinerTarget(2), {"probability": False}, FinerTarget(2)(logits)),
        (lambda output: output[:, 1] * 2, {}, logits[:, 1] * 2),
    ):
        with rescoring(model, x, targets, **options) as rescore:
            torch.testing.assert_close(rescore(x, sample_index), expected)
    with rescoring(model, x, TopK(2)) as rescore:
        assert rescore.predicts is None
        largest = logits.topk(2).indices
        torch.testing.assert_close(rescore(-x, sample_index), model(-x).detach().gather(1, largest).sum(1))


def test_several_classes_of_each_image() -> None:
    model, x, classes = tiny(), images(), torch.tensor([[0, 1], [2, 3], [4, 0]])
    with rescoring(model, x, classes) as rescore:
        found = rescore(x[INDEX], INDEX)
    torch.testing.assert_close(found, model(x).softmax(1).detach()[INDEX].gather(1, classes[INDEX]))


def test_a_model_with_one_output() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    x, sample_index = images(), torch.arange(3)
    with rescoring(model, x) as rescore:
        torch.testing.assert_close(rescore(x, sample_index), model(x)[:, 0].sigmoid().detach())
        assert torch.equal(rescore.predicts(x, sample_index), (model(x)[:, 0] > 0).float())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model, x = seeded(Restless()).train(), images()
    model.drop.eval()
    with unchanged(model, x), suppress(KeyError), rescoring(model, x) as rescore:
        assert not model.training
        rescore(x, torch.arange(3))
        if fails:
            raise KeyError


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode) -> None:
    model, x = tiny(), images()
    with rescoring(model, x, 1) as rescore:
        expected = rescore(x, torch.arange(3))
    with mode(), rescoring(model, x.clone(), 1) as rescore:
        found = rescore(x.clone(), torch.arange(3))
    torch.testing.assert_close(found, expected)


def test_autocast_is_that_of_the_caller() -> None:
    seen = []
    model, x = conv_model(before=lambda x: seen.append(x.dtype) or x), images()
    with torch.autocast("cpu", dtype=torch.bfloat16), rescoring(model, x) as rescore:
        assert rescore(x, torch.arange(3)).dtype == torch.float32
    assert seen == [torch.bfloat16] * 2


def test_what_does_not_fit_is_said_before_anything_is_measured() -> None:
    model, x = tiny(), images()
    for targets, error in ((torch.tensor([0, 1]), ShapeError), (5, ClassIndexError)):
        with pytest.raises(error), rescoring(model, x, targets):
            raise AssertionError
    with pytest.raises(OptionError, match="batch_size"), rescoring(model, x, batch_size=0):
        raise AssertionError
    several = conv_model(output=lambda logits: (logits, logits))
    with pytest.raises(TargetError), rescoring(several, x):
        raise AssertionError

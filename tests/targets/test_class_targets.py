"""Targets of classes: models with one output, probabilities, differences, by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from evidence import close, quick, subject
from models import images, tiny
from representatives import each
from torch import Tensor

from gradcam_kit import GradCAM
from gradcam_kit.errors import ClassIndexError, ShapeError, TargetError
from gradcam_kit.targets import ClassLogit, ClassProbability, LogitDifference

INPUT = images(3, size=(8, 8))
LOGITS = torch.tensor([[5.0, 1.0, 0.0], [0.0, 7.0, 2.0]])


@pytest.mark.parametrize("name", each())
def test_model_with_one_output(name: str) -> None:
    cam = quick(name)(*subject(name, classes=1))
    none, negative = cam.explain(INPUT, ClassLogit(0)), cam.explain(INPUT, lambda logits: -logits[:, 0])
    assert cam.explain(INPUT).targets.tolist() == [0, 0, 0]
    if cam.target_type is ClassLogit:
        assert torch.equal(none.heatmaps, cam(INPUT))
    assert torch.equal(none.scores, -negative.scores)
    with pytest.raises(ClassIndexError, match=r"class 1 for a model with 1 output\(s\).*Negative\(0\)"):
        cam(INPUT, 1)


def test_negative_class_of_a_binary_model_is_the_opposite_map() -> None:
    positive, negative = (
        GradCAM(tiny(classes=1), "relu2").explain(INPUT, target)
        for target in (None, lambda logits: -logits[:, 0])
    )  # fmt: skip
    assert torch.equal(positive.saliency["relu2"], -negative.saliency["relu2"])
    assert not torch.equal(positive.heatmaps, negative.heatmaps)


def by_hand(target: Callable[[Tensor], Tensor]) -> list[list[float]]:
    return target(LOGITS).reshape(2, -1).tolist()


def test_class_targets_by_hand() -> None:
    assert by_hand(ClassLogit(1)) == [[1], [7]]
    assert by_hand(ClassLogit([2, 1])) == [[0], [7]]
    assert by_hand(ClassLogit([[0, 2], [2, 1]])) == [[5, 0], [2, 7]]
    # against the mean of the others: 5 - 0.5, 7 - 1
    assert by_hand(LogitDifference([0, 1])) == [[4.5], [6]]
    assert by_hand(LogitDifference(0, against=1)) == [[4], [-7]]
    assert by_hand(LogitDifference([0, 1], against=[1, 2])) == [[4], [5]]
    assert by_hand(LogitDifference([[0, 2], [0, 2]], against=1)) == [[4, -1], [-7, -5]]
    probabilities = np.exp(LOGITS.numpy()) / np.exp(LOGITS.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(by_hand(ClassProbability([[0, 1, 2]] * 2)), probabilities, rtol=1e-6)
    assert ClassProbability(0)(torch.tensor([[0.0], [np.log(3)]])).tolist() == pytest.approx([0.5, 0.75])


def test_class_targets_select_their_rows() -> None:
    index = torch.tensor([1, 1, 0])
    for target in (
        ClassLogit([2, 1]),
        ClassProbability([[0, 2], [2, 1]]),
        LogitDifference([0, 1], against=[1, 2]),
        LogitDifference([0, 1], against=2),
        LogitDifference(1, against=[0, 2]),
        LogitDifference(1),
    ):
        assert torch.equal(target.select(index)(LOGITS[index]), target(LOGITS)[index])


def test_probability_is_float32_also_of_half_logits() -> None:
    assert ClassProbability(0)(LOGITS.half()).dtype == torch.float32
    assert close(ClassProbability(0)(LOGITS.half()), ClassProbability(0)(LOGITS))
    assert ClassProbability(0)(LOGITS.double()).dtype == torch.float64


def test_logit_difference_needs_another_class() -> None:
    with pytest.raises(TargetError, match="one output"):
        GradCAM(tiny(classes=1), "relu2")(INPUT, LogitDifference(0))
    with pytest.raises(ClassIndexError, match="class 7"):
        GradCAM(tiny(), "relu2")(INPUT, LogitDifference(0, against=7))


@pytest.mark.parametrize(
    ("classes", "against"),
    [
        (4, 4),
        ([1, 4], 4),
        (2, [0, 2]),
        ([1, 2], [2, 2]),
        ([[0, 1], [2, 3]], [[1, 0], [2, 4]]),
        ([[0, 1], [2, 3]], [4, 3]),
    ],
)
def test_logit_difference_of_a_class_with_itself_is_an_error(classes, against) -> None:
    with pytest.raises(TargetError, match="compares a class with itself"):
        LogitDifference(classes, against=against)


def test_logit_difference_takes_one_reference_for_each_class() -> None:
    assert by_hand(LogitDifference([[0, 1], [1, 0]], against=[2, 2])) == [[5, 1], [5, -2]]
    assert by_hand(LogitDifference([[0, 1], [1, 0]], against=[[1, 2], [2, 1]])) == [[4, 1], [5, -7]]
    assert by_hand(LogitDifference(0, against=[1, 2])) == [[4], [-2]]
    for classes, against in ((1, [[0, 2], [0, 2]]), ([1, 1], [[0, 2], [0, 2]]), ([[1, 2]], [[0, 1, 2]])):
        with pytest.raises(ShapeError, match="expected the same"):
            LogitDifference(classes, against=against)


@pytest.mark.parametrize("name", ["grad-cam", "einsum-cam", "score-cam"])
def test_every_class_target_explains(name: str) -> None:
    for target, formula in (
        (ClassProbability([0, 1, 2]), lambda z: z.softmax(1).diagonal()),
        (LogitDifference([0, 1, 2], against=4), lambda z: z.diagonal() - z[:, 4]),
    ):
        explanation = quick(name)(tiny(), "relu2").explain(INPUT, target)
        by_formula = quick(name)(tiny(), "relu2").explain(INPUT, formula)
        assert close(explanation.scores, by_formula.scores)
        assert close(explanation.heatmaps, by_formula.heatmaps, 1e-5)

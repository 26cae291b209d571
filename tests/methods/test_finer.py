"""`FinerTarget` and Finer-CAM: numbers by hand, the transcription, ties and few classes, and changed rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference as ref
import torch
from models import conv_model, images, tiny
from torch import Tensor
from torch.testing import assert_close

from gradcam_kit import EinsumCAM, FinerCAM, GradCAM, ScoreCAM, explain_all
from gradcam_kit.capture import Request, capture, read_inputs
from gradcam_kit.errors import ClassIndexError, OptionError, ShapeError
from gradcam_kit.methods import BaseCAM
from gradcam_kit.targets import FinerTarget
from gradcam_kit.types import Evidence, LayerCapture

INPUT = images(3, size=(10, 8))
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -5.0]])
OPTIONS = [
    {},
    {"references": 1},
    {"references": 2, "alpha": 0.25},
    {"references": 7},
    {"weighting": "mean"},
    {"weighting": "mean", "references": 2, "gamma": 0.9},
]


def random_logits(classes: int = 6) -> Tensor:
    return torch.randn(4, classes, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3


def options_of_reference(options: dict[str, Any]) -> dict[str, Any]:
    return {"count" if key == "references" else key: value for key, value in options.items()}


# Numbers


def test_softmax_weighs_the_differences_by_the_references_probabilities() -> None:
    e = math.e
    assert_close(FinerTarget(0, references=2)(LOGITS), torch.tensor([(e * 1 + 1 * 2) / (e + 1)]))
    assert_close(FinerTarget(0, references=2, alpha=0.5)(LOGITS), torch.tensor([(e * 1.5 + 1 * 2) / (e + 1)]))
    # Class 2 is nearest to class 1, then class 0 and class 3.
    assert_close(FinerTarget(2, references=1)(LOGITS), torch.tensor([-1.0]))


def test_mean_subtracts_a_share_of_the_references_mean() -> None:
    assert_close(FinerTarget(0, weighting="mean")(LOGITS), torch.tensor([2 - 0.6 * (1 + 0 - 5) / 3]))
    assert_close(FinerTarget(0, weighting="mean", references=2, gamma=1.0)(LOGITS), torch.tensor([1.5]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_scores_equal_the_transcription(classes: int, options: dict[str, Any]) -> None:
    logits = random_logits(classes)
    found = FinerTarget(torch.arange(classes).expand(4, -1), **options)(logits)
    expected = [[ref.finer_score(row, c, **options_of_reference(options)) for c in range(classes)] for row in logits]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_gradient_flows_through_the_probabilities() -> None:
    logits = random_logits().requires_grad_()
    (found,) = torch.autograd.grad(FinerTarget(2)(logits).sum(), logits)
    step = 1e-6 * torch.eye(6, dtype=torch.float64)

    def score(row: Tensor) -> float:
        return ref.finer_score(row.detach(), 2)

    expected = [[(score(row + one) - score(row - one)) / 2e-6 for one in step] for row in logits]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)


# Ties and few classes


@pytest.mark.parametrize("target", range(5))
def test_tied_logits_never_compare_a_class_with_itself(target: int) -> None:
    logits = torch.ones(1, 5, requires_grad=True)
    score = FinerTarget(target, weighting="mean", gamma=0.75)(logits)
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    expected = torch.zeros(1, 5)
    expected[0, [other for other in range(5) if other != target][:3]] = -0.25
    expected[0, target] = 1
    assert_close(gradient, expected)
    assert_close(score, torch.tensor([0.25]))


def test_few_classes_have_fewer_references() -> None:
    assert_close(FinerTarget(1)(torch.tensor([[3.0, 1.0]])), torch.tensor([-2.0]))
    assert_close(FinerTarget(0, weighting="mean")(torch.tensor([[3.0, 1.0]])), torch.tensor([2.4]))
    assert_close(FinerTarget(0, weighting="mean")(torch.tensor([[3.0, 1.0, 0.0]])), torch.tensor([2.7]))


@pytest.mark.parametrize("weighting", ["softmax", "mean"])
def test_one_output_is_explained_as_it_is(weighting: Any) -> None:
    model = tiny(classes=1)
    target = FinerTarget(0, weighting=weighting)
    assert_close(target(torch.tensor([[3.0], [-2.0]])), torch.tensor([3.0, -2.0]))
    plain = GradCAM(model, "relu2").explain(INPUT)
    for found in (GradCAM(model, "relu2").explain(INPUT, target), FinerCAM(model, "relu2").explain(INPUT)):
        assert torch.equal(found.scores, plain.scores)
        assert torch.equal(found.heatmaps, plain.heatmaps)
    with pytest.raises(ClassIndexError, match=r"class 1 for a model with 1 output.*Negative\(0\)"):
        FinerCAM(model, "relu2")(INPUT, 1)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits = random_logits()
    assert_close(FinerTarget(1)(logits + 50), FinerTarget(1)(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = (random_logits() * 4).to(dtype)
    found = FinerTarget([[0, 1]] * 4)(logits)
    assert found.dtype == torch.float32
    assert_close(found, FinerTarget([[0, 1]] * 4)(logits.double()).float())


# Finer-CAM


def test_finer_cam_is_grad_cam_of_the_default_target() -> None:
    model, classes = tiny(), [4, 0, 2]
    found = FinerCAM(model, "relu2").explain(INPUT, classes)
    expected = GradCAM(model, "relu2").explain(INPUT, FinerTarget(classes))
    assert torch.equal(found.saliency["relu2"], expected.saliency["relu2"])
    assert torch.equal(found.targets, torch.tensor(classes))
    assert torch.equal(found.scores, FinerTarget(classes)(found.output))
    assert not torch.allclose(found.heatmaps, GradCAM(model, "relu2")(INPUT, classes))


def test_none_compares_the_predicted_class() -> None:
    found = FinerCAM(tiny(), "relu2").explain(INPUT)
    predicted = found.output.argmax(1)
    assert torch.equal(found.targets, predicted)
    assert_close(found.heatmaps, FinerCAM(tiny(), "relu2")(INPUT, predicted))


def test_without_strength_it_is_grad_cam() -> None:
    found = GradCAM(tiny(), "relu1")(INPUT, FinerTarget(3, alpha=0.0))
    assert_close(found, GradCAM(tiny(), "relu1")(INPUT, 3))


@pytest.mark.parametrize("weighting", ["softmax", "mean"])
def test_m_classes_equal_m_calls(weighting: Any) -> None:
    classes = torch.tensor([[0, 4], [2, 1], [3, 3]])
    cam = GradCAM(tiny(), "relu2")
    together = cam.explain(INPUT, FinerTarget(classes, weighting=weighting))
    assert together.heatmaps.shape == (3, 2, 10, 8)
    for j in range(2):
        alone = cam.explain(INPUT, FinerTarget(classes[:, j], weighting=weighting))
        assert_close(together.scores[:, j], alone.scores)
        assert_close(together.saliency["relu2"][:, j], alone.saliency["relu2"])


def test_methods_with_another_target_do_not_share_its_scores() -> None:
    model = tiny()
    plain, finer = explain_all([GradCAM(model, "relu2"), FinerCAM(model, "relu2")], INPUT, 1)
    assert_close(plain, GradCAM(model, "relu2")(INPUT, 1))
    assert_close(finer, FinerCAM(model, "relu2")(INPUT, 1))


@pytest.mark.parametrize("classes", [1, [4, 0, 2], [[0, 1], [2, 3], [4, 0]]])
def test_einsum_cam_goes_through_the_logits_only(classes: Any) -> None:
    needs_gradient: list[bool] = []
    model = conv_model(output=lambda logits: needs_gradient.append(logits.requires_grad) or logits, behind=lambda x: x)
    found = EinsumCAM(model, "layer").explain(INPUT, FinerTarget(classes))
    assert needs_gradient == [False]
    expected = GradCAM(model, "layer").explain(INPUT, FinerTarget(classes))
    assert_close(found.saliency["layer"], expected.saliency["layer"], rtol=1e-4, atol=1e-6)
    assert_close(found.scores, expected.scores)


# Changed rows


class Rescored(BaseCAM):
    """Keeps the scores of negated images in another order."""

    needs = Evidence.RESCORE
    index = torch.tensor([2, 0, 2, 1])

    def saliency(self, layer: LayerCapture) -> Tensor:
        self.found = layer.rescore(-layer.images[self.index], self.index)
        return layer.activations.sum(1)

    def saliencies(self, layer: LayerCapture) -> Tensor:
        return self.saliency(layer)


def nearest_of(logits: Tensor, target: int) -> list[int]:
    return ref.finer_references(logits, target, count=2)


@pytest.mark.parametrize("classes", [1, [1, 2, 1]])
def test_changed_rows_are_compared_with_the_references_of_the_image(classes: Any) -> None:
    model = conv_model()
    cam = Rescored(model, "layer")
    cam.explain(INPUT * 3, FinerTarget(classes, references=2, weighting="mean"))
    own = torch.as_tensor(classes).expand(3)
    with torch.no_grad():
        clean, negated = model(INPUT * 3), model(-3 * INPUT[cam.index])
    references = [nearest_of(clean[i], int(own[i])) for i in range(3)]
    changed = [nearest_of(row, int(own[i])) for row, i in zip(negated, cam.index, strict=True)]
    # Alone, the negated images would choose other references.
    assert any(set(references[i]) != set(one) for i, one in zip(cam.index, changed, strict=True))
    expected = [
        row[own[i]] - 0.6 * row[references[i]].mean() for row, i in zip(negated, cam.index.tolist(), strict=True)
    ]
    assert_close(cam.found, torch.stack(expected))


@pytest.mark.parametrize("classes", [1, [[0, 1], [2, 3], [4, 0]]])
def test_score_cam_of_a_batch_equals_one_by_one(classes: Any) -> None:
    cam = ScoreCAM(tiny(), "relu2", batch_size=4)
    together = cam(INPUT, FinerTarget(classes))
    for i in range(3):
        alone = cam(INPUT[i : i + 1], FinerTarget(classes if isinstance(classes, int) else classes[i : i + 1]))
        assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert float(together.amax()) == 1


def test_a_passed_target_is_left_alone() -> None:
    target = FinerTarget([1, 2, 3])
    GradCAM(tiny(), "relu2")(INPUT, target)
    assert target.nearest is None
    inputs = read_inputs(INPUT, {})
    model = tiny()
    request = Request({"relu2": model.relu2}, {"relu2": Evidence.NONE}, target, FinerTarget)
    with capture(model, inputs, request) as captured:
        assert captured.target is not target
        assert captured.target.nearest.shape == (3, 1, 3)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "sum"}, "weighting is 'sum'; expected 'softmax' or 'mean'"),
        ({"references": 0}, "references is 0; expected a positive int"),
        ({"references": 2.0}, "references is 2.0"),
        ({"references": True}, "references is True"),
    ],
)
def test_refused_options_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    target = FinerTarget(0)
    for name, value in options.items():
        object.__setattr__(target, name, value)  # past the type checks of the tests
    with pytest.raises(OptionError, match=message):
        target.__post_init__()


def test_wrong_classes_are_errors_as_everywhere() -> None:
    with pytest.raises(ClassIndexError, match="class 5 for a model with 5"):
        FinerCAM(tiny(), "relu2")(INPUT, 5)
    with pytest.raises(ShapeError, match="2 targets for 3 images"):
        FinerCAM(tiny(), "relu2")(INPUT, [1, 2])

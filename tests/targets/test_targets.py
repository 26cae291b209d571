"""Targets: every way to say what is explained, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from evidence import ON_CNNS, close, quick, subject
from models import build, images, tiny
from representatives import each
from torch import Tensor, nn

from gradcam_kit import EinsumCAM, GradCAM, ScoreCAM
from gradcam_kit.capture import resolve_target
from gradcam_kit.errors import CaptureError, ClassIndexError, InputError, ShapeError, TargetError
from gradcam_kit.targets import (
    ClassLogit,
    ClassProbability,
    DetectionTarget,
    EmbeddingSimilarity,
    FinerTarget,
    LogitDifference,
    Negative,
    SegmentationTarget,
    TopK,
)

INPUT = images(3, size=(8, 8))
CLASSES = [[0, 1], [2, 3], [4, 0]]
LOGITS = torch.tensor([[5.0, 1.0, 0.0], [0.0, 7.0, 2.0]])


# Plain classes


@pytest.mark.parametrize(
    "targets",
    [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8), ClassLogit(2),
     [2, 2, 2], (2, 2, 2), np.array([2, 2, 2]), np.array([2, 2, 2], dtype=np.int16), torch.tensor([2, 2, 2]),
     torch.tensor([2, 2, 2], dtype=torch.int32), [torch.tensor(2)] * 3, [np.int32(2)] * 3],
)  # fmt: skip
@pytest.mark.parametrize("method", [GradCAM, EinsumCAM, ScoreCAM])
def test_a_class_in_every_form(method: Any, targets: Any) -> None:
    explanation = method(tiny(), "relu2").explain(INPUT, targets)
    expected = method(tiny(), "relu2").explain(INPUT, lambda logits: logits[:, 2])
    assert torch.equal(explanation.targets, torch.tensor([2, 2, 2]))
    assert torch.equal(explanation.scores, expected.scores)
    assert close(explanation.heatmaps, expected.heatmaps)
    assert expected.targets is None


@pytest.mark.parametrize("targets", [CLASSES, np.array(CLASSES), torch.tensor(CLASSES), torch.tensor(CLASSES).int()])
def test_several_classes_in_every_form(targets: Any) -> None:
    explanation = GradCAM(tiny(), "relu2").explain(INPUT, targets)
    assert torch.equal(explanation.targets, torch.tensor(CLASSES))
    assert explanation.heatmaps.shape == (3, 2, 8, 8)
    assert explanation.scores.shape == explanation.is_empty.shape == (3, 2)


@pytest.mark.parametrize("name", each())
def test_m_classes_from_one_pass_equal_m_calls(name: str) -> None:
    cam = quick(name)(*subject(name))
    classes = torch.tensor(CLASSES)
    together = cam.explain(INPUT, classes)
    assert together.saliency[together.layers[0]].shape[:2] == (3, 2)
    for j in range(2):
        alone = cam.explain(INPUT, classes[:, j])
        assert torch.equal(together.scores[:, j], alone.scores)
        assert close(together.heatmaps[:, j], alone.heatmaps)
    single = cam(INPUT, classes[:, :1])
    assert single.shape == (3, 1, 8, 8)
    assert close(single[:, 0], cam(INPUT, classes[:, 0]))


@pytest.mark.parametrize("name", each(ON_CNNS))
def test_none_explains_the_predicted_class_of_each_sample(name: str) -> None:
    model = tiny()
    with torch.no_grad():
        model.fc.bias.add_(torch.tensor([0.0, 1.5, 0, 0, 0]))
        predicted = model(INPUT).argmax(1)
    assert len(predicted.unique()) > 1
    explanation = quick(name)(model, "relu2").explain(INPUT)
    again = quick(name)(model, "relu2").explain(INPUT, predicted)
    assert torch.equal(explanation.targets, predicted)
    assert torch.equal(explanation.heatmaps, again.heatmaps)
    assert torch.equal(explanation.scores, again.scores)


@pytest.mark.parametrize("name", each())
def test_a_batch_equals_its_samples_one_by_one(name: str) -> None:
    model, layer = subject(name)
    cam, x = quick(name)(model.double(), layer), INPUT.double()  # min-max would enlarge rounding of float32
    for targets in ([0, 3, 1], CLASSES, None):
        together = cam.explain(x, targets)
        for i in range(3):
            alone = cam.explain(x[i : i + 1], targets and targets[i : i + 1])
            assert close(together.heatmaps[i : i + 1], alone.heatmaps, 1e-5)
            assert close(together.scores[i : i + 1], alone.scores)


def test_predicted_scores_are_those_of_each_row() -> None:
    model = build(lambda m, x: m.pool(x).flatten(1)[:, :2], pool=nn.AdaptiveAvgPool2d(1))
    x = torch.zeros(2, 3, 4, 4)
    x[0, :2] = torch.tensor([5.0, 1]).view(2, 1, 1)
    x[1, :2] = torch.tensor([0.0, 7]).view(2, 1, 1)
    model.pool = nn.Sequential(nn.Identity(), model.pool)
    explanation = GradCAM(model, "pool.0").explain(x)
    assert explanation.scores.tolist() == [5, 7]
    assert explanation.targets.tolist() == [0, 1]


def test_passed_targets_are_not_kept_or_changed() -> None:
    classes = torch.tensor([0, 1, 2])
    target = ClassLogit(classes)
    classes[0] = 4
    assert target.classes.tolist() == [0, 1, 2]
    GradCAM(tiny(), "relu2")(INPUT, target)
    assert target.classes.tolist() == [0, 1, 2]
    with pytest.raises(AttributeError):
        target.classes = 3


# Refused


MULTI_HOT = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (True, InputError, "bool"),
    (np.True_, InputError, "bool"),
    (torch.tensor(True), InputError, "bool"),
    ([True, False, True], InputError, "bool"),
    (torch.tensor([True, False, True]), InputError, "bool"),
    (1.0, InputError, "float64; expected integer"),
    (np.float32(1), InputError, "float32; expected integer"),
    (torch.tensor(1.0), InputError, "float32"),
    ([0.5, 1, 2], InputError, "float64"),
    (torch.ones(3), InputError, "float32; expected integer"),
    (torch.ones(3) * 1j, InputError, "complex"),
    ("cat", InputError, r"targets is a str; expected.*class_names\.index\('cat'\)$"),
    ({0, 1, 2}, InputError, "targets is a set; expected .* or a callable$"),
    ([[0, 1], [2]], ShapeError, r"rows of 1 and 2 classes; expected the same number for each image, \(n, m\)"),
    ([None, 1, 2], InputError, "targets is a list of NoneType, int; expected .* or a callable$"),
    (["cat"] * 3, InputError, r"is a list of str; expected.*: \[class_names\.index\(name\) for name in targets\]$"),
    (np.array(["cat"] * 3), InputError, r"targets is a ndarray; expected.* for name in targets\]$"),
    ([lambda z: z[:, 0]] * 3, InputError, "targets is a list of callables; expected one callable for the whole batch"),
    ([ClassLogit(2)], InputError, "list of callables.* pass their indices: 281, or one per image"),
    (torch.eye(5)[:3], InputError, r"float32; expected integer.*one-hot.*argmax\(1\)"),
    (torch.eye(5)[:3] > 0, InputError, r"bool; expected integer.*argmax\(1\)"),
    (torch.eye(5)[:3].long(), TargetError, r"\(n, 5\) for a model with 5 classes are one-hot.*argmax\(1\)"),
    (MULTI_HOT, TargetError, r"\(n, 5\) for a model with 5 classes are multi-hot.*arange\(5\).*heatmaps\[labels"),
    (MULTI_HOT.numpy().astype("uint8"), TargetError, "are multi-hot"),
    (torch.zeros(3, 5).int().tolist(), TargetError, "are multi-hot"),
    (MULTI_HOT > 0, InputError, r"bool; expected integer.*for multi-hot labels torch\.arange\(5\)"),
    (Ellipsis, InputError, "targets is an ellipsis"),
    (torch.zeros(3, 2, 1).long(), ShapeError, r"\(3, 2, 1\); expected \(n,\) or \(n, m\)"),
    (torch.zeros(3, 0).long(), ShapeError, r"\(3, 0\)"),
    ([0, 1], ShapeError, "2 targets for 3 images"),
    ([0], ShapeError, "1 targets for 3 images"),
    ([], ShapeError, "0 targets for 3 images"),
    (torch.tensor([[0, 1, 2]]), ShapeError, "1 targets for 3 images"),
    (5, ClassIndexError, r"class 5 for a model with 5 output\(s\); classes go from 0 to 4"),
    (-1, ClassIndexError, "class -1 for a model with 5"),
    ([0, 1, 9], ClassIndexError, "class 9 for a model with 5"),
    ([[0, -3], [1, 1], [2, 2]], ClassIndexError, "class -3 for a model with 5"),
    (10**12, ClassIndexError, "class 1000000000000"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[2])
def test_refused_targets_say_what_is_wrong(case: tuple[Any, type[Exception], str]) -> None:
    targets, error, message = case
    for method in (GradCAM, ScoreCAM, EinsumCAM):
        with pytest.raises(error, match=message):
            method(tiny(), "relu2")(INPUT, targets)
    with pytest.raises(error, match=message):
        GradCAM(tiny())(INPUT, targets)


def test_errors_are_the_builtins_that_a_python_user_expects() -> None:
    for targets, builtin in ((9, IndexError), ([0, 1], ValueError), (1.5, TypeError)):
        with pytest.raises(builtin):
            GradCAM(tiny(), "relu2")(INPUT, targets)


@pytest.mark.parametrize(
    ("target", "shape"),
    [(lambda z: z, r"\(3, 5\)"), (lambda z: z.mean(), r"\(\)"),
     (lambda z: z[:, :1], r"\(3, 1\)"), (lambda z: z[:2, 0], r"\(2,\)")],
)  # fmt: skip
@pytest.mark.parametrize("layer", ["relu2", None])
def test_callable_of_the_wrong_shape_names_both(target: Any, shape: str, layer: str | None) -> None:
    for method in (GradCAM, ScoreCAM, EinsumCAM):
        with pytest.raises(ShapeError, match=rf"shape {shape}; expected \(3,\)"):
            method(tiny(), layer)(INPUT, target)


def test_callable_that_returns_no_tensor_names_its_type() -> None:
    with pytest.raises(InputError, match="returned a float"):
        GradCAM(tiny(), "relu2")(INPUT, lambda z: 1.0)


@pytest.mark.parametrize("layer", ["relu2", None])
@pytest.mark.parametrize("target", [lambda z: torch.ones(3), lambda z: z.detach()[:, 0], lambda z: z.argmax(1).float()])
def test_callable_that_cuts_the_graph_is_told_so(target: Any, layer: str | None) -> None:
    for method in (GradCAM, EinsumCAM):
        with pytest.raises(TargetError, match=r"scores without a graph.*no detach\(\)"):
            method(tiny(), layer)(INPUT, target)
    assert ScoreCAM(tiny(), "relu2")(INPUT, target).shape == (3, 8, 8)  # needs no graph


def test_layers_are_blamed_where_they_are_to_blame() -> None:
    model = build(lambda m, x: (m.body(x), m.other(x))[0], body=tiny(), other=nn.Conv2d(3, 4, 3))
    for target in (None, lambda z: z[:, 0]):
        with pytest.raises(CaptureError, match="does not depend on layer 'other'"):
            GradCAM(model, "other")(INPUT, target)


def test_rows_of_one_and_zeros_are_classes_where_they_can_be() -> None:
    assert GradCAM(tiny(classes=2), "relu2").explain(INPUT, [[0, 1], [1, 0], [0, 1]]).targets[1].tolist() == [1, 0]
    assert GradCAM(tiny(), "relu2")(INPUT, [[0, 0, 1]] * 3).shape == (3, 3, 8, 8)
    assert GradCAM(tiny(), "relu2")(INPUT, [[0, 2, 0, 1, 1]] * 3).shape == (3, 5, 8, 8)


def test_targets_show_what_they_are() -> None:
    assert repr(ClassLogit([1, 2])) == "ClassLogit(classes=[1, 2])"
    assert repr(LogitDifference(4, against=2)) == "LogitDifference(classes=4, against=2)"
    assert repr(Negative(0)) == "Negative(target=ClassLogit(classes=0))"
    assert repr(FinerTarget(1, references=2).settle(LOGITS)) == "FinerTarget(classes=1, references=2)"
    assert repr(SegmentationTarget(torch.zeros(2, 9, 9), 3)) == (
        "SegmentationTarget(mask=<torch.float32 (2, 9, 9)>, classes=3)"
    )
    assert repr(EmbeddingSimilarity([1.0, 0.0])) == "EmbeddingSimilarity(reference=[1.0, 0.0])"
    assert repr(DetectionTarget([1, 2, 3, 4], iou=0.3)) == "DetectionTarget(boxes=[1.0, 2.0, 3.0, 4.0], iou=0.3)"
    assert repr(TopK(3)) == "TopK(k=3)"


# Callables


class Column:
    """A target that knows its samples."""

    def __init__(self, classes: Tensor) -> None:
        self.columns = classes

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.gather(1, self.columns[:, None])[:, 0]

    def select(self, index: Tensor) -> Column:
        return Column(self.columns[index])


@pytest.mark.parametrize("name", each())
def test_callable_with_and_without_select_and_class_indices_agree(name: str) -> None:
    classes = torch.tensor([0, 3, 1])
    cam = quick(name)(*subject(name), batch_size=4)
    # This one counts on its three rows, which masked batches do not have.
    fixed = cam(INPUT, lambda logits: torch.stack([logits[0, 0], logits[1, 3], logits[2, 1]]))
    assert close(fixed, cam(INPUT, Column(classes)), 1e-5)
    if name not in ("group-cam", "sess"):  # with classes these two score masked images by probabilities
        assert close(fixed, cam(INPUT, ClassLogit(classes)), 1e-5)


def test_callable_without_select_sees_masked_rows_in_the_place_of_their_sample() -> None:
    def target(output: dict[str, Any]) -> Tensor:
        assert output["logits"].shape == (3, 5)
        assert len(output["boxes"]) == 3
        return torch.stack([output["logits"][0, 4], *(box.sum() for box in output["boxes"][1:])])

    model = build(lambda m, x: {"logits": (z := m.body(x)), "boxes": list(z[:, :4].square())}, body=tiny())
    cam = ScoreCAM(model, "body.relu2", batch_size=5)
    with_select = ScoreCAM(model.body, "relu2")(INPUT, MixedTarget(torch.arange(3)))
    assert close(cam(INPUT, target), with_select, 1e-6)


class MixedTarget:
    """Logit 4 of sample 0, a sum of squares for the others."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples

    def __call__(self, logits: Tensor) -> Tensor:
        return torch.where(self.samples == 0, logits[:, 4], logits[:, :4].square().sum(1))

    def select(self, index: Tensor) -> MixedTarget:
        return MixedTarget(self.samples[index])


def test_none_and_callables_are_passed_on() -> None:
    assert resolve_target(None, ClassLogit) is None
    assert resolve_target(len, ClassLogit) is len
    assert isinstance(inspect.unwrap(resolve_target)(3, ClassProbability), ClassProbability)

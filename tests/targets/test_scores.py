"""What the score of a class is, by evidence: the last operation, the values, the configuration; and by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_kit import GradCAM, compare
from gradcam_kit.capture import ClassProbability, output_with_graph, read_inputs, rescoring
from gradcam_kit.targets.scores import class_scores, evident_kind, last_operation

LOGITS = torch.tensor([[0.0, 2.0, -1.0]])


class Net(nn.Module):
    """A small classifier with any ending."""

    def __init__(self, end: Any, classes: int = 4, gain: float = 9.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.end, self.gain = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, classes), end, gain

    def forward(self, images: Tensor) -> Any:
        return self.end(self.head(self.features(images).relu().mean((2, 3))) * self.gain)


IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
ENDS: dict[str, tuple[Any, str]] = {
    "logits": (nn.Identity(), "softmax"),
    "softmax": (nn.Softmax(1), "raw"),
    "sigmoid": (torch.sigmoid, "raw"),
    "log-softmax": (nn.LogSoftmax(1), "softmax"),
    "log-sigmoid": (nn.LogSigmoid(), "raw"),
    "sigmoid in a tuple": (lambda x: (x.sigmoid(),), "raw"),
    "heads side by side": (lambda x: torch.cat([x[:, :2].sigmoid(), x[:, 2:].sigmoid()], 1), "raw"),
    "a head of logits beside one of sigmoids": (lambda x: torch.cat([x[:, :2].sigmoid(), x[:, 2:]], 1), "softmax"),
    "sigmoid in half precision": (lambda x: x.sigmoid().half().float(), "raw"),
    "sigmoid without a graph, of few values": (lambda x: x.detach().sigmoid(), "softmax"),
    "softmax without a graph": (lambda x: x.detach().softmax(1), "raw"),
    "mean of two softmaxes": (lambda x: (x.softmax(1) + (2 * x).softmax(1)) / 2, "raw"),
    "tanh": (torch.tanh, "softmax"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_evidence_decides(name: str) -> None:
    end, expected = ENDS[name]
    output = output_with_graph(Net(end), read_inputs(IMAGES, {}))
    logits = output[0] if isinstance(output, tuple) else output
    assert evident_kind(Net(end), [logits])[0] == expected


def test_many_values_between_0_and_1_are_evidence_without_a_graph() -> None:
    assert evident_kind(None, [torch.full((1, 7), 0.9)])[0] == "softmax"
    assert evident_kind(None, [torch.full((1, 8), 0.9)])[0] == "raw"
    assert evident_kind(None, [torch.full((1, 4), 0.9), torch.full((1, 4), 0.1)])[0] == "raw"
    assert evident_kind(None, [torch.full((1, 8), 1.1)])[0] == "softmax"
    assert evident_kind(None, [torch.full((5, 1), 3.0)])[0] == "sigmoid"


def test_a_linear_head_is_no_probability_by_chance() -> None:
    head = nn.Linear(3, 8)
    nn.init.constant_(head.weight, 0.0)
    nn.init.constant_(head.bias, 0.125)
    logits = head(torch.ones(1, 3))
    assert last_operation(logits) == "addmm"
    assert evident_kind(None, [logits])[0] == "softmax"


@pytest.mark.parametrize(("problem", "kind"), [("multi_label_classification", "sigmoid"), ("regression", "raw")])
def test_a_configuration_that_names_the_problem_decides(problem: str, kind: str) -> None:
    assert evident_kind(SimpleNamespace(config=SimpleNamespace(problem_type=problem)), [LOGITS])[0] == kind


def test_scores_by_hand() -> None:
    torch.testing.assert_close(class_scores(LOGITS, "sigmoid")[0, 0], torch.tensor(0.5))
    torch.testing.assert_close(class_scores(LOGITS)[0, 1], torch.tensor(0.8438), atol=1e-4, rtol=0)  # e^2 / sum
    assert class_scores(LOGITS, "raw").equal(LOGITS)
    assert ClassProbability(1, "raw")(LOGITS).item() == 2.0
    assert repr(ClassProbability(1, "raw")) == "ClassProbability(classes=1, scores='raw')"
    torch.testing.assert_close(ClassProbability(0)(LOGITS[:, :1]), torch.tensor([0.5]))


@pytest.mark.parametrize("end", [torch.sigmoid, nn.Softmax(1)], ids=["sigmoid", "softmax"])
def test_a_comparison_shows_probabilities_as_the_model_has_them(end: Any) -> None:
    model = Net(end).eval()
    found = compare(model, IMAGES, ["grad-cam"], "features", cost=False, metrics="average-drop", baselines=False)
    torch.testing.assert_close(found.scores, model(IMAGES).amax(1).detach())
    assert found.score_kind == "raw"
    assert "the score of a class is the output of the class as it is" in found.page()


def test_a_score_above_1_is_not_shown_as_a_share() -> None:
    model = Net(nn.Identity()).eval()
    raw = compare(model, IMAGES, ["grad-cam"], "features", cost=False, scores="raw")
    assert all("%" not in panel.note and ", score " in panel.note for panel in raw.panels())
    assert all("%" in panel.note for panel in compare(model, IMAGES, ["grad-cam"], "features", cost=False).panels())


def test_several_labels_by_sigmoid_of_logits() -> None:
    model = Net(nn.Identity()).eval()
    found = compare(model, IMAGES, ["grad-cam"], "features", targets=2, cost=False, scores="sigmoid")
    torch.testing.assert_close(found.scores, model(IMAGES)[:, 2].sigmoid().detach())


def test_metrics_measure_the_same_score() -> None:
    model = Net(torch.sigmoid).eval()
    with rescoring(model, IMAGES, 1, scores="raw") as rescore:
        torch.testing.assert_close(rescore(IMAGES, torch.arange(2)), model(IMAGES)[:, 1].detach())
        assert rescore.settings["score"] == "ClassProbability, raw"


def test_one_output_that_is_a_probability_is_predicted_above_one_half() -> None:
    model = Net(lambda x: torch.full((len(x), 1), 0.3) + 0 * x[:, :1], classes=1)
    with rescoring(model, IMAGES, scores="raw") as rescore:
        assert rescore.predicts is not None
        assert rescore.predicts(IMAGES, torch.arange(2)).tolist() == [0, 0]


def test_the_graph_leaves_nothing_behind() -> None:
    model = Net(torch.sigmoid).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output_with_graph(model, read_inputs(IMAGES, {}))
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def named(**attributes: Any) -> nn.Module:
    model = Net(nn.Identity()).eval()
    model.class_names = ["cat", "dog", "cup", "K\u00e4se"]
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("targets", "indices"),
    [
        ("dog", 1),
        (["cup", "cat"], [2, 0]),
        ([["cup", "dog"], ["cat", "Ka\u0308se"]], [[2, 1], [0, 3]]),
        (["cup", 1], [2, 1]),
    ],
)
def test_names_stand_for_indices(targets: Any, indices: Any) -> None:
    cam = GradCAM(named(), "features")
    assert cam(IMAGES, targets).equal(cam(IMAGES, indices))
    compared = compare(cam.model, IMAGES, ["grad-cam"], "features", targets=targets, cost=False)
    assert compared.heatmaps["grad-cam"].equal(cam(IMAGES, indices))


def test_names_that_are_given_count_before_those_that_are_carried() -> None:
    found = compare(named(), IMAGES, ["grad-cam"], "features", targets="b", class_names=list("abcd"), cost=False)
    assert found.targets is not None
    assert found.targets.tolist() == [1, 1]
    assert found.table["target_name"].tolist() == ["b", "b"]

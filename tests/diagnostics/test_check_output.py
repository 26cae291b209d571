"""Faults planted into outputs, and their healthy twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from planted import CLASSES, batch, images, labels, network, said
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.diagnostics.checks.output import check_output
from gradcam_kit.errors import InputError, ShapeError


def quiet(model: nn.Module, pair: Any, **options: Any) -> None:
    assert said(check_output(model, pair, **options)) == []


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(), functional.cross_entropy])
def test_softmax_twice(loss: Callable[..., Any] | None) -> None:
    [finding] = check_output(network(nn.Softmax(1)).eval(), batch(), loss=loss)
    assert (finding.level, finding.kind, finding.n) == ("bad", "softmax-twice", 32)
    quiet(network().eval(), batch(), loss=loss)


def test_probabilities_are_right_for_losses_that_want_them() -> None:
    def logarithmic(output: Tensor, target: Tensor) -> Tensor:
        return functional.nll_loss(output.log(), target)

    quiet(network(nn.Softmax(1)).eval(), batch(), loss=logarithmic)
    quiet(network(nn.LogSoftmax(1)).eval(), batch(), loss=nn.NLLLoss())
    assert said(check_output(network().eval(), batch(), loss=nn.NLLLoss())) == [("bad", "range")]

    def own(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    assert said(check_output(network(nn.Softmax(1)).eval(), batch(), loss=own)) == [("bad", "softmax-twice")]
    assert said(check_output(network(nn.Softmax(1)).eval(), (images(), None))) == [("warn", "softmax-twice")]


def test_sigmoid_twice_on_one_logit() -> None:
    pair = images(), (labels() > 1).float()[:, None]
    loss = nn.BCEWithLogitsLoss()
    assert said(check_output(network(nn.Sigmoid(), outputs=1).eval(), pair, loss=loss)) == [("bad", "softmax-twice")]
    quiet(network(outputs=1).eval(), pair, loss=loss)
    quiet(network(nn.Sigmoid(), outputs=1).eval(), pair, loss=nn.BCELoss())


def test_labels_off_by_one() -> None:
    [finding] = check_output(network().eval(), (images(), labels() + 1))
    assert (finding.level, finding.kind, finding.value, finding.threshold) == ("bad", "label-range", 4, 3)
    assert "off by one" in finding.message
    ignored = labels().masked_fill(labels() == 0, -100)
    quiet(network().eval(), (images(), ignored))
    quiet(
        network().eval(), (images(), labels().masked_fill(labels() == 0, -1)), loss=nn.CrossEntropyLoss(ignore_index=-1)
    )


def test_constant_output() -> None:
    model = network().eval()
    nn.init.zeros_(model[5].weight)
    assert said(check_output(model, batch())) == [("bad", "constant-output")]
    nn.init.constant_(model[5].weight, 1e-9)
    nn.init.zeros_(model[5].bias)
    quiet(model, batch())  # small outputs that follow the input are not constant
    quiet(network().eval(), (images(1).expand(8, -1, -1, -1), labels(8)))  # equal inputs have equal outputs


@pytest.mark.parametrize("n", [2, 32])
def test_batch_normalization_left_in_train_mode(n: int) -> None:
    model = network().eval()
    model[1].train()
    [finding] = check_output(model, batch(n))
    assert (finding.level, finding.kind, finding.layer) == ("bad", "batch-leak", "1")
    model[1].eval()
    quiet(model, batch(n))


class Mixing(nn.Module):
    """Subtracts the mean over the batch in front of a network."""

    def __init__(self, detached: bool, share: float = 1) -> None:
        super().__init__()
        self.network, self.detached, self.share = network(dropout=0), detached, share

    def forward(self, x: Tensor) -> Tensor:
        mean = self.share * x.mean(dim=0, keepdim=True)
        return self.network(x - (mean.detach() if self.detached else mean))


@pytest.mark.parametrize(("detached", "share"), [(False, 1), (True, 1), (False, 1e-4)])
def test_samples_that_are_mixed_by_the_model(detached: bool, share: float) -> None:
    assert said(check_output(Mixing(detached, share).eval(), batch())) == [("bad", "batch-leak")]


def test_dropout_that_stays_on() -> None:
    model = network().eval()
    model[4].train()
    assert said(check_output(model, batch())) == [("bad", "random-eval")]


def test_forgotten_eval_is_said_and_changes_no_other_verdict() -> None:
    assert said(check_output(network(), batch())) == [("warn", "random-eval"), ("warn", "batch-leak")]
    assert said(check_output(network(dropout=0), batch())) == [("warn", "batch-leak")]
    quiet(network().eval(), batch())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(432, CLASSES))
    quiet(plain.train(), batch())


def test_values_that_are_not_finite() -> None:
    model = network().eval()
    with torch.no_grad():
        model[5].bias[0] = torch.nan
    [finding] = check_output(model, batch())
    assert (finding.kind, finding.value) == ("nonfinite", 32)


def test_outputs_that_are_no_classes_get_no_verdict_about_classes() -> None:
    dense = nn.Sequential(nn.Conv2d(3, CLASSES, 3, padding=1)).eval()
    quiet(dense, (images(), torch.randint(0, CLASSES, (32, 12, 12))), loss=nn.CrossEntropyLoss())
    found = check_output(dense, (images(), torch.randint(0, CLASSES, (32, 12, 12)) + 1))
    assert said(found) == [("bad", "label-range")]
    assert said(
        check_output(nn.Sequential(dense, nn.Softmax(1)).eval(), (images(), torch.zeros(32, 12, 12).long()))
    ) == [("bad", "softmax-twice")]
    regression = network(outputs=1).eval()
    quiet(regression, (images(), torch.randn(32, 1)), loss=nn.MSELoss())
    quiet(regression, (images(), labels() % 2))
    quiet(network(nn.Softmax(1)).eval(), (images(), torch.rand(32, CLASSES)), loss=nn.MSELoss())


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network(dropout=0)

    def forward(self, pixels: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(pixels * scale[:, None, None, None]), "extra": pixels.flatten(1)}


def test_models_of_several_inputs_and_outputs() -> None:
    model, scale = Several().eval(), torch.ones(32)
    quiet(model, ((images(), scale), labels()))
    quiet(model, ({"pixels": images(), "scale": scale}, labels()))
    found = check_output(model, ({"pixels": images(), "scale": scale}, labels() + 1))
    assert said(found) == [("bad", "label-range")]


@pytest.mark.parametrize(
    ("pair", "error", "says"),
    [
        ({"image": images(), "label": labels()}, InputError, "a mapping with keys 'image', 'label'; expected"),
        (images(), InputError, "a Tensor without labels; expected"),
        ((images(), labels(), labels()), InputError, "3 values; expected"),
        (("a", labels()), InputError, "the images of the batch are a str"),
        ((images(), labels(31)), ShapeError, "32 images and 31 labels"),
    ],
)
def test_batches_that_are_not_pairs(pair: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_output(network().eval(), pair)


def test_models_that_are_not_modules() -> None:
    with pytest.raises(InputError, match=r"a function; expected a torch.nn.Module"):
        check_output(lambda x: x, batch())  # type: ignore[arg-type]

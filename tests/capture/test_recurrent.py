"""Recurrent layers over time: which of their tensors is the sequence, and how it is laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evidence import evidence
from models import build, images
from representatives import each
from torch import Tensor, nn
from torch.backends import cudnn
from traces import unchanged

from gradcam_kit import METHODS, GradCAM
from gradcam_kit.capture.model import state
from gradcam_kit.types import Evidence

GRADIENT_FAMILY = [name for name, method in METHODS.items() if method.needs == Evidence.GRADIENTS]
KINDS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.GRU, {}),
    (nn.LSTM, {}),
    (nn.RNN, {"num_layers": 2}),
    (nn.GRU, {"bidirectional": True}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
]


def over_time(
    kind: type[nn.RNNBase] = nn.GRU, batch_first: bool = True, last: bool = False, **options: Any
) -> nn.Module:
    """A convolution, a recurrent layer with an output as wide as its sequence is long, and a head."""
    layer = kind(6, 10, batch_first=batch_first, **options)
    width = 20 if options.get("bidirectional") else 10

    def run(m: Any, x: Tensor) -> Tensor:
        steps = m.conv(x).relu().transpose(1, 2)
        sequence = m.layer(steps)[0] if batch_first else m.layer(steps.transpose(0, 1))[0].transpose(0, 1)
        return m.fc(sequence[:, -1] if last else sequence.mean(1) ** 2)

    return build(run, conv=nn.Conv1d(3, 6, 3, padding=1), layer=layer, fc=nn.Linear(width, 5))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("n", [1, 2, 10])
def test_the_sequence_is_explained_and_not_the_states(
    kind: type[nn.RNNBase], options: dict[str, Any], batch_first: bool, n: int
) -> None:
    # As many samples as directions, as layers, or as steps, so that every axis could be taken for another.
    model, x = over_time(kind, batch_first, **options), images(n, 3, (10,))
    seen = evidence(model, "layer", x)
    steps = model.conv(x).relu().transpose(1, 2)
    sequence = model.layer(steps if batch_first else steps.transpose(0, 1))[0]
    leaf = (sequence if batch_first else sequence.transpose(0, 1)).detach().requires_grad_()
    logits = model.fc(leaf.mean(1) ** 2)
    logits.gather(1, logits.argmax(1, keepdim=True)).sum().backward()
    assert torch.allclose(seen.activations, leaf.detach().transpose(1, 2), atol=1e-6)
    assert torch.allclose(seen.gradients, leaf.grad.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("name", each(GRADIENT_FAMILY))
@pytest.mark.parametrize("layer", ["conv", "layer", None])
def test_gradient_methods_over_time(name: str, layer: str | None) -> None:
    for batch_first in (True, False):
        model, x = over_time(batch_first=batch_first), images(3, 3, (12,))
        cam = METHODS[name](model, layer)
        with unchanged(model, x):
            together = cam(x)
        assert together.shape == (3, 12)
        assert together.any()
        assert torch.allclose(together, torch.cat([cam(one[None]) for one in x]), atol=1e-5)


@pytest.mark.parametrize("name", ["ablation-cam", "recipro-cam", "score-cam"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_perturbation_methods_over_time(name: str, batch_first: bool) -> None:
    # In float64: the scores of neighboring positions differ by little, and min-max enlarges rounding too.
    model, x = over_time(batch_first=batch_first).double(), images(3, 3, (12,)).double()
    cam = METHODS[name](model, "layer")
    assert torch.allclose(cam(x), torch.cat([cam(one[None]) for one in x]), atol=1e-5)


def test_replay_of_a_sequence_that_comes_first() -> None:
    expected, model = over_time(), over_time(batch_first=False)
    model.load_state_dict(expected.state_dict())
    x = images(3, 3, (12,))
    for name in ("ablation-cam", "recipro-cam"):
        assert torch.allclose(METHODS[name](model, "layer")(x), METHODS[name](expected, "layer")(x), atol=1e-5)


def test_the_automatic_layer_is_one_whose_steps_count() -> None:
    x = images(2, 3, (12,))
    for batch_first in (True, False):
        assert GradCAM(over_time(batch_first=batch_first)).explain(x).layers == ("layer",)
        # The last state alone is read, so no gradient reaches the other steps behind the layer.
        assert GradCAM(over_time(batch_first=batch_first, last=True)).explain(x).layers == ("conv",)


def test_cudnn_is_off_while_a_recurrent_layer_builds_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its backward pass refuses eval mode; this stands for a layer on a GPU.
    monkeypatch.setattr(state, "_is_on_cuda", lambda module: True)
    model, x, seen = over_time(), images(2, 3, (12,)), []
    model.layer.register_forward_hook(lambda *_: seen.append((torch.is_grad_enabled(), cudnn.enabled)))
    with unchanged(model, x):
        METHODS["ablation-cam"](model, "conv")(x)
        GradCAM(model, "conv")(x)
    assert set(seen) == {(False, True), (True, False)}
    model.layer.input_size = 1  # the layer itself raises
    with unchanged(model, x), pytest.raises(RuntimeError, match="input_size"):
        GradCAM(model, "conv")(x)

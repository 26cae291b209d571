"""Importance of units by four methods against loops in float64, and what is left behind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional
from traces import unchanged
from trainings import he, mlp

from gradcam_kit.diagnostics import layer_importance
from gradcam_kit.errors import InputError, LayerNotFoundError, OptionError, ShapeError, UnknownNameError

METHODS = ("activation", "gradient", "taylor", "ablation")


def model() -> nn.Sequential:
    return he(  # type: ignore[return-value]
        nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.ELU(inplace=True)),
            *(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)),
        )
    )


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)) for n in (6, 3)]


def by_hand(network: nn.Sequential, layer: int, method: str, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """One sample and one unit at a time, float64."""
    network = copy.deepcopy(network).double().eval()
    for part in network:
        if isinstance(part, nn.ReLU | nn.ELU):
            part.inplace = False
    front, behind = network[: layer + 1], network[layer + 1 :]
    found = []
    for images, labels in data:
        for x, y in zip(images.double(), labels, strict=True):
            a = front(x[None]).detach().requires_grad_()
            loss = functional.cross_entropy(behind(a), y[None])
            g = torch.autograd.grad(loss, a)[0][0].flatten(1) if a.ndim > 2 else torch.autograd.grad(loss, a)[0].T
            values = a.detach()[0].flatten(1) if a.ndim > 2 else a.detach().T
            units = []
            for unit in range(len(values)):
                cut = a.detach().clone()
                cut[:, unit] = 0
                rise = functional.cross_entropy(behind(cut), y[None]) - loss
                units.append(
                    {
                        "activation": values[unit].abs().mean(),
                        "gradient": g[unit].abs().mean(),
                        "taylor": (values[unit] * g[unit]).sum().abs(),
                        "ablation": rise,
                    }[method].item()
                )
            found.append(units)
    return np.mean(found, 0)


@pytest.mark.parametrize("method", METHODS)
def test_importance_is_that_of_the_formula(method: str) -> None:
    network, data = model().train(), batches()
    found = layer_importance(network, data, method)
    assert list(found) == ["0", "3", "8"]  # not the layer that makes the output
    assert (found.n, found.method) == (9, method)
    for name, values in found.items():
        np.testing.assert_allclose(values.numpy(), by_hand(network, int(name), method, data), rtol=1e-3, atol=1e-6)


def test_a_unit_without_effect_is_the_least_important_for_all_methods_with_labels() -> None:
    network = mlp(depth=1, activation=nn.Identity)
    with torch.no_grad():
        network[2].weight[:, 5] = 0  # type: ignore[union-attr]
    data = [(torch.randn(32, 16), torch.randint(8, (32,)))]
    found = {method: layer_importance(network, data, method) for method in METHODS}
    for method in METHODS[1:]:
        values = found[method]["0"]
        assert values[5] == pytest.approx(0, abs=1e-7)
        assert values.abs().argmin() == 5
    assert found["taylor"].least(0.1)["0"][0] == 5
    agreement = found["taylor"].agreement(found["gradient"])["0"]
    assert agreement == pytest.approx(spearmanr(found["taylor"]["0"], found["gradient"]["0"]).statistic)
    assert found["taylor"].agreement(found["taylor"])["0"] == pytest.approx(1)


def test_tokens_words_and_losses_of_ones_own() -> None:
    words = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 1))
    data = [(torch.randint(9, (7, 4)), torch.randn(7, 1))]
    loss = nn.MSELoss()
    found = layer_importance(words, data, "taylor", loss=loss)
    assert [(name, len(values)) for name, values in found.items()] == [("1", 5)]
    summed = layer_importance(words, data, "taylor", loss=lambda output, y: (output - y).square().mean(1))
    torch.testing.assert_close(found["1"], summed["1"])
    images = [(torch.randn(7, 4, 6), torch.randn(7, 1))]
    tokens = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 1)).double()
    inputs, labels = images[0][0].double(), images[0][1].double()
    ablated = layer_importance(tokens, [(inputs, labels)], "ablation", loss=loss, batch_size=3)["0"]
    hidden = tokens[0](inputs)
    for unit in range(5):
        cut = hidden.detach().clone()
        cut[..., unit] = 0
        rise = loss(tokens[1:](cut), labels) - loss(tokens(inputs), labels)
        assert ablated[unit].item() == pytest.approx(rise.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed_also_after_an_error(method: Any) -> None:
    network, data = model().train(), batches()
    network(data[0][0]).sum().backward()
    frozen = model()
    frozen.requires_grad_(False)
    with unchanged(network, data[0][0]), unchanged(frozen):
        layer_importance(network, data, method)
        assert set(layer_importance(frozen, data, method)) == {"0", "3", "8"}
        with pytest.raises(RuntimeError):
            layer_importance(network, [*data, (torch.zeros(2, 4, 8, 8), torch.zeros(2).long())], method)


def test_it_shows_itself() -> None:
    found = layer_importance(model(), batches(), "activation", layers=["0", "2"])
    assert list(found) == ["0", "2"]
    assert found.plot().axes
    assert len(found.to_pandas()) == 12
    assert "Importance by activation, 9 samples." in str(found)
    assert "<svg" in found._repr_html_()
    assert found.least(1.0) == {name: values.argsort(stable=True)[:5].tolist() for name, values in found.items()}
    with pytest.raises(OptionError, match="share is 2"):
        found.least(2)
    with pytest.raises(UnknownNameError, match="importance of layer '1'"):
        found["1"]
    with pytest.raises(ShapeError, match="has 6 units in one result and 32 in the other"):
        found.agreement(layer_importance(mlp(), [torch.zeros(4, 16)], "activation"))


def test_images_without_labels_suffice_for_activations() -> None:
    images = batches()[0][0]
    assert torch.equal(
        layer_importance(model(), [images], "activation")["0"],
        layer_importance(model(), images, "activation")["0"],
    )
    with pytest.raises(InputError, match="'taylor' needs labels for the loss"):
        layer_importance(model(), [images], "taylor")


@pytest.mark.parametrize(
    ("loader", "options", "error", "message"),
    [
        ([], {}, InputError, "the loader yields nothing"),
        (batches()[0][0], {}, InputError, "the loader is a Tensor.*needs labels for the loss"),
        ([{"x": 1}], {}, InputError, "gives a mapping with keys 'x'"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2))], {}, InputError, r"labels are torch.float32 \(2,\)"),
        ([(torch.zeros(2, 3, 8, 8), torch.full((2,), 4))], {}, InputError, "labels go from 4 to 4"),
        (batches(), {"loss": lambda output, y: 1.0}, InputError, "the loss returns a float"),
        (batches(), {"loss": lambda output, y: torch.zeros(2, 2)}, ShapeError, r"the loss has shape \(2, 2\)"),
        (batches(), {"layers": "conv9"}, LayerNotFoundError, "no layer 'conv9'"),
        (batches(), {"method": "magnitude"}, OptionError, "method is 'magnitude'; expected 'activation'"),
        (batches(), {"layers": "7", "method": "ablation", "batch_size": 0}, OptionError, "batch_size is 0"),
    ],
)
def test_bad_input_is_one_line(loader: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        layer_importance(model(), loader, **options)
    assert "\n" not in str(caught.value)


def test_a_layer_that_runs_twice_is_pooled_or_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(torch.relu(self.layer(x))))

    data = [(torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1]))]
    assert set(layer_importance(Twice(), data, "taylor")) == {"layer"}
    with pytest.raises(InputError, match="no layer has units to measure: layer ran 2 times for one batch"):
        layer_importance(Twice(), data, "ablation")


def test_layers_behind_a_fast_path_and_tensors_of_inference_mode() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.Sequential(nn.Linear(6, 8), layer, nn.Flatten(), nn.Linear(40, 4)).eval()
    with torch.inference_mode():
        data = [(torch.randn(6, 5, 6), torch.randint(4, (6,)))]
        for method in METHODS:
            assert set(layer_importance(encoder, data, method)) == {"0", "1.linear1", "1.linear2"}

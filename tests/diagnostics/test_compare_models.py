"""CKA of the layers of two models against loops, planted layers that change nothing, and what is left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted import said
from torch import Tensor, nn
from traces import unchanged
from trainings import he, mlp

from gradcam_kit.diagnostics import cka, compare_models
from gradcam_kit.diagnostics.maths.distances import PairwiseCKA
from gradcam_kit.errors import InputError, LayerNotFoundError, NonFiniteError, ShapeError


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolutional(seed: int = 0) -> nn.Sequential:
    return he(  # type: ignore[return-value]
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Conv2d(8, 12, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
        ),
        seed=seed,
    )


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, with matrices."""
    n, ones = len(x), np.ones(len(x))
    k, j = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(j, 0)
    whole = ones @ k @ ones * (ones @ j @ ones) / ((n - 1) * (n - 2))
    return float((np.trace(k @ j) + whole - 2 / (n - 2) * ones @ k @ j @ ones) / (n * (n - 3)))


def by_hand(a: nn.Sequential, b: nn.Sequential, batches: list[Tensor]) -> np.ndarray:
    """Minibatch CKA of all layers, float64, from features that are averaged over positions."""

    def features(model: nn.Sequential, x: Tensor) -> list[np.ndarray]:
        found = []
        for layer in model:
            x = layer(x.clone())
            found.append((x.flatten(2).mean(2) if x.ndim > 2 else x).detach().numpy().astype(float))
        return found

    sums = np.zeros((3, len(a), len(b)))
    for x in batches:
        own, other = features(a.eval(), x), features(b.eval(), x)
        for i, f in enumerate(own):
            for j, g in enumerate(other):
                sums[:, i, j] += hsic(f, g), hsic(f, f), hsic(g, g)
    return sums[0] / np.sqrt(sums[1] * sums[2])


def test_pairs_equal_single_ones_and_a_constant_unit_has_none() -> None:
    a, b = [draws(20, 3), draws(20, 5, seed=1)], [draws(20, 4, seed=2), torch.full((20, 2), 0.1)]
    pairs = PairwiseCKA()
    for part in (slice(0, 8), slice(8, 20)):
        pairs.add([one[part] for one in a], [one[part] for one in b])
    expected = [[cka([x[:8], x[8:]], [y[:8], y[8:]]) for y in b] for x in a]
    assert torch.allclose(pairs.value, torch.tensor(expected, dtype=torch.float64), atol=1e-12, equal_nan=True)
    assert pairs.value.isnan().tolist() == [[False, True]] * 2


def test_the_matrix_is_that_of_the_formula_in_eval_mode() -> None:
    a, b, images = convolutional(), convolutional(seed=1).eval(), draws(30, 3, 10, 10)
    batches = [images[:10], images[10:20], images[20:]]
    found = compare_models(a.train(), b, batches)
    assert found.cka.shape == (9, 9)
    assert found.layers_a == tuple(map(str, range(9)))
    assert found.n == 30
    assert found.findings == ()
    np.testing.assert_allclose(found.cka.numpy(), by_hand(a, b, batches), atol=1e-5)
    split = compare_models(a, b, images, batch_size=10)
    assert torch.equal(split.cka, found.cka)
    assert found.nearest()["8"][0] in found.layers_b


def test_layers_are_chosen_and_models_may_differ() -> None:
    a, b = convolutional(), mlp()
    labeled = [(draws(8, 3, 10, 10), torch.zeros(8)), (draws(3, 3, 10, 10), torch.zeros(3))]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(300, 16), *b)
    found = compare_models(a, flat, labeled, nn.Conv2d, layers_b=nn.Linear)
    assert (found.layers_a, found.layers_b) == (("0", "4"), ("1", "2", "4", "6", "8"))
    assert found.cka.shape == (2, 5)
    assert found.n == 8
    assert found.notes == ("CKA needs at least 4 images per batch; images left out, because their batch has fewer: 3.",)
    assert found.plot().axes
    assert found.to_pandas().shape == (2, 5)
    assert "NOTE CKA needs" in str(found)
    assert "<svg" in found._repr_html_()


def test_a_layer_that_changes_nothing_is_named_and_its_twin_is_not() -> None:
    model = mlp(depth=4)
    images = draws(64, 16)
    assert compare_models(model, model, images).findings == ()
    with torch.no_grad():
        model[4].weight.copy_(torch.eye(32))  # type: ignore[union-attr]
    [finding] = compare_models(model, model, images).findings
    assert (finding.level, finding.kind, finding.layer) == ("warn", "collapsed", "4")
    assert finding.value > 0.999
    assert compare_models(model, mlp(depth=4), images).findings == ()


def test_a_residual_block_whose_branch_is_zero_is_named() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    model = he(nn.Sequential(nn.Linear(16, 32), Residual(), Residual(), nn.Linear(32, 8)))
    assert compare_models(model, model, draws(64, 16), ["0", "1", "2"]).findings == ()
    nn.init.zeros_(model[2].branch[2].weight)  # type: ignore[index, union-attr]
    found = compare_models(model, model, draws(64, 16), ["0", "1", "2"]).findings
    assert [(one.kind, one.layer) for one in found] == [("collapsed", "2")]


def test_collapsed_features_are_bad_and_named_once() -> None:
    model = mlp(depth=4)
    with torch.no_grad():
        model[2].weight.copy_(torch.outer(torch.ones(32), model[2].weight[0]))  # type: ignore[union-attr, index]
    found = compare_models(model, model, draws(64, 16)).findings
    assert said(found) == [("bad", "collapsed")]
    assert found[0].layer == "2"
    assert found[0].value == pytest.approx(1, abs=1e-3)


def test_nothing_is_changed_also_after_an_error() -> None:
    model, other, images = convolutional().train(), convolutional(seed=1), draws(12, 3, 10, 10)
    with unchanged(model, images), unchanged(other, images):
        compare_models(model, other, images)
        compare_models(model, model, images)
        with pytest.raises(RuntimeError):
            compare_models(model, other, draws(12, 4, 10, 10))


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ([], {}, InputError, "the loader yields nothing"),
        ({"x": 1}, {}, InputError, "the loader is a dict"),
        ([{"image": draws(8, 16)}], {}, InputError, "gives a mapping with keys 'image'.*batch="),
        ([(1, 2, 3)], {}, InputError, "gives 3 values"),
        (["a"], {}, InputError, "gives a str"),
        (draws(3, 16), {}, ShapeError, "fewer than 4 images"),
        (torch.zeros(0, 16), {}, InputError, r"a tensor \(0, 16\)"),
        (draws(8, 16), {"layers": "7*"}, LayerNotFoundError, "no layer '7\\*'"),
        (draws(8, 16) / 0, {}, NonFiniteError, "layer '0' hold NaN"),
    ],
)
def test_bad_input_is_one_line(images: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        compare_models(mlp(), mlp(), images, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_compared_is_listed() -> None:
    lstm = nn.Sequential(nn.LSTM(4, 6, batch_first=True))
    found = compare_models(lstm, lstm, draws(8, 5, 4))
    assert (found.layers_a, found.cka.shape) == (("0",), (1, 1))
    batches = [{"image": draws(8, 16)}]
    assert compare_models(mlp(), mlp(), batches, batch=lambda item: item["image"]).n == 8

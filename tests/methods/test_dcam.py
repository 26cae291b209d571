"""dCAM: cubes, regrouping and maps by hand and against the transcription."""

from __future__ import annotations

import pytest
import reference as ref
import torch
from cases import assert_same
from models import Built, build, seeded
from test_score_cam import Counted
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import DCAM, METHODS, GradCAM
from gradcam_kit.errors import ClassIndexError, OptionError, ShapeError, TargetError
from gradcam_kit.methods.dcam import cube, dcam, regroup


def cube_model(dimensions: int = 4, classes: int = 3, stride: int = 1) -> nn.Module:
    """Convolutions along time alone, each row by itself, and a linear head behind mean pooling."""
    model = Built(
        lambda m, x: m.fc(m.relu(m.layer(m.first(x).relu())).mean((2, 3))),
        first=nn.Conv2d(dimensions, 6, (1, 3), padding=(0, 1)),
        layer=nn.Conv2d(6, 5, (1, 3), stride=(1, stride), padding=(0, 1)),
        relu=nn.ReLU(),
        fc=nn.Linear(5, classes),
    )
    return seeded(model, 5).double()


def series(n: int = 3, dimensions: int = 4, times: int = 11) -> Tensor:
    return torch.randn(n, dimensions, times, generator=torch.Generator().manual_seed(5)).double()


def drawn_orders(permutations: int, dimensions: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(permutations, dimensions, generator=torch.Generator().manual_seed(seed)).argsort(1)


def slow_cube(one, order):
    """Row r of position p is dimension `order[(r + p) % D]`."""
    count = len(order)
    return torch.stack([torch.stack([one[order[(r + p) % count]] for r in range(count)]) for p in range(count)])


def by_hand(model, one, orders, target):
    """The transcription on the orders that the model gives the target, and how many those are."""
    cams, kept = [], []
    for order in orders.tolist():
        pass_ = slow_cube(one, order)[None]
        activations = model.relu(model.layer(model.first(pass_).relu())).detach()
        if int(model(pass_).argmax()) == target:
            weights = model.fc.weight[target].detach() / activations[0, 0].numel()
            cams.append(ref.weighted_sum(weights, activations[0]))
            kept.append(order)
    return ref.dcam(cams, kept) if kept else None, len(kept)


def test_cube_by_hand():
    one = torch.tensor([[[0.0], [1.0], [2.0]]])
    found = cube(one, torch.tensor([[0, 1, 2], [2, 0, 1]]))
    assert found.shape == (1, 2, 3, 3, 1)
    assert found[0, 0, :, :, 0].tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert found[0, 1, :, :, 0].tolist() == [[2, 0, 1], [0, 1, 2], [1, 2, 0]]


def test_every_row_and_every_position_has_all_dimensions():
    found = cube(series(), drawn_orders(6))
    assert torch.equal(found, torch.stack([torch.stack([slow_cube(o, k) for k in drawn_orders(6)]) for o in series()]))
    for axis in (2, 3):
        sums = found.sum(axis)
        assert_same(sums, series().sum(1)[:, None, None].expand_as(sums))


def test_formulas_equal_the_transcription():
    orders = drawn_orders(7)
    maps = torch.randn(2, 7, 4, 6, generator=torch.Generator().manual_seed(1)).double()
    found = dcam(regroup(maps, orders) / 7)
    for one, own in zip(found, maps, strict=True):
        assert_same(one, ref.dcam(list(own), orders.tolist()))


def test_variance_is_over_positions():
    """M(dimension, position) that depends on the dimension alone has no variance; one on the position alone has."""
    by_dimension = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 3, 2)
    assert not dcam(by_dimension).any()
    assert_same(dcam(by_dimension.transpose(1, 2)), torch.full((1, 3, 2), 2 / 3), 1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_equals_the_transcription(stride, target):
    model, dropped = cube_model(stride=stride), 0
    found = DCAM(model, "relu", permutations=12, seed=4).explain(series(), target)
    assert found.targets.tolist() == [target] * 3
    for i, one in enumerate(series()):
        expected, kept = by_hand(model, one, drawn_orders(12, seed=4), target)
        assert int(found.kept[i]) == kept
        dropped += 12 - kept
        if kept:
            assert_same(found.saliency[i], expected)
            torch.testing.assert_close(
                found.heatmaps[i].double(), torch.from_numpy(ref.heatmap([expected], (4, 11))), rtol=0, atol=1e-6
            )
        else:
            assert found.is_empty[i]
            assert not found.saliency[i].any()
            assert not found.heatmaps[i].any()
    assert dropped > 0  # by this model, for every class


def test_some_orders_are_misclassified():
    """So that dropping them is tested at all."""
    model = cube_model()
    kept = [by_hand(model, one, drawn_orders(12, seed=4), c)[1] for one in series() for c in range(3)]
    assert any(0 < count < 12 for count in kept)
    assert 0 in kept


def test_class_is_predicted_for_the_dimensions_as_they_are():
    model = cube_model()
    own = cube(series(), torch.arange(4)[None])[:, 0]
    found = DCAM(model, "relu", permutations=5).explain(series())
    assert torch.equal(found.targets, model(own).argmax(1))


def test_heatmaps_compare_dimensions():
    found = DCAM(cube_model(), "relu", permutations=20).explain(series())
    assert found.heatmaps.shape == (3, 4, 11)
    assert found.heatmaps.dtype == torch.float32
    assert torch.equal(found.heatmaps.flatten(1).amax(1), (~found.is_empty).float())
    assert (found.heatmaps.amax(2) < 1).sum() >= 9  # one dimension of each series has the maximum
    assert torch.equal(DCAM(cube_model(), "relu", permutations=20)(series()), found.heatmaps)


def test_dimension_that_matters():
    """A model that looks at one position of each row, and a bump in dimension 2: only its place changes the maps."""
    model = build(
        lambda m, x: m.fc(m.relu(m.layer(x)).mean((2, 3))),
        layer=nn.Conv2d(4, 1, 1),
        relu=nn.ReLU(),
        fc=nn.Linear(1, 2),
    ).double()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1))  # looks at position 0
        model.layer.bias.zero_()
        model.fc.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.fc.bias.zero_()
    one = torch.zeros(1, 4, 10).double()
    one[0, 2, 3:6] = 1.0
    found = DCAM(model, "relu", permutations=50).explain(one, 0)
    assert found.kept.tolist() == [50]
    assert found.heatmaps[0].amax(1).tolist() == pytest.approx([0, 0, 1, 0], abs=0.3)
    assert not found.heatmaps[0, :, :3].any()
    assert not found.heatmaps[0, :, 6:].any()
    assert found.heatmaps[0, :, 3:6].any()


@pytest.mark.parametrize("batch_size", [1, 5, 7, 64])
def test_batch_size_changes_nothing(batch_size):
    model = Counted(cube_model()).eval()
    found = DCAM(model, "inner.relu", permutations=9, batch_size=batch_size).explain(series(), [0, 1, 2])
    expected = DCAM(cube_model(), "relu", permutations=9).explain(series(), [0, 1, 2])
    assert_same(found.saliency, expected.saliency, 1e-11)
    assert torch.equal(found.kept, expected.kept)
    assert max(model.rows) == max(3, 3 * (batch_size // 3)) if batch_size < 27 else 27
    assert sum(model.rows) == 3 + 27


def test_batch_equals_one_by_one():
    whole = DCAM(cube_model(), "relu", permutations=9).explain(series())
    for i in range(3):
        alone = DCAM(cube_model(), "relu", permutations=9).explain(series()[i : i + 1])
        assert_same(whole.saliency[i], alone.saliency[0], 1e-11)
        assert whole.kept[i] == alone.kept[0]


def test_seeds():
    model = cube_model()
    state = torch.get_rng_state()
    first, again, other = (DCAM(model, "relu", permutations=5, seed=s).explain(series(), 0).saliency for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3 * first.abs().max()
    assert torch.equal(torch.get_rng_state(), state)


def test_leaves_no_trace():
    model, x = cube_model().train(), series()
    with unchanged(model, x):
        DCAM(model, "relu", permutations=3)(x)
    with unchanged(model, x), pytest.raises(ClassIndexError):
        DCAM(model, "relu", permutations=3)(x, 7)
    with torch.inference_mode():
        assert not DCAM(model, "relu", permutations=3)(x.clone()).requires_grad


def test_automatic_layer():
    found = DCAM(cube_model(), permutations=6).explain(series(), 0)
    assert_same(found.saliency, DCAM(cube_model(), "relu", permutations=6).explain(series(), 0).saliency)


def test_layers_that_mix_the_rows():
    model = build(
        lambda m, x: m.fc(m.layer(x).mean((2, 3))), layer=nn.Conv2d(4, 5, 3, stride=2), fc=nn.Linear(5, 3)
    ).double()
    with pytest.raises(ShapeError, match=r"'layer' has maps \(1, 5\) for 4 dimensions"):
        DCAM(model, "layer", permutations=2)(series(), 0)


@pytest.mark.parametrize("targets", [lambda logits: logits[:, 0], torch.zeros(3, 2, dtype=torch.long)])
def test_targets_other_than_one_class(targets):
    with pytest.raises(TargetError, match="one class of each series"):
        DCAM(cube_model(), "relu", permutations=2)(series(), targets)


def test_wrong_arguments():
    with pytest.raises(OptionError, match="permutations"):
        DCAM(cube_model(), permutations=0)
    with pytest.raises(OptionError, match="2 target layers"):
        DCAM(cube_model(), ["layer", "relu"])
    with pytest.raises(ShapeError, match="0, 4, 11"):
        DCAM(cube_model(), "relu")(series(0))


def test_is_no_method():
    assert DCAM not in METHODS.values()
    assert GradCAM in METHODS.values()

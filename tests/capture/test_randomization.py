"""Models with random parameters: what is drawn, in which order, and that nothing of it stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import RestlessViT, TinyViT, images, seeded, tiny
from scipy.stats import spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from traces import unchanged

from gradcam_kit import EigenCAM, GradCAM
from gradcam_kit.capture.model.randomization import randomizing
from gradcam_kit.errors import LayerNotFoundError, OptionError
from gradcam_kit.metrics import Status
from gradcam_kit.metrics.randomization import (
    class_sensitivity,
    hog_correlation,
    method_agreement,
    parameter_randomization,
    spearman,
)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in {**model.state_dict()}.items()}


def different(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


class Normed(nn.Module):
    """Layers that are registered in another order than they run, with every kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.constant = nn.Parameter(torch.full((4,), 0.1))
        self.zeros = nn.Parameter(torch.zeros(4))
        self.never = nn.Linear(2, 2)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        scale = self.gamma * self.constant + self.zeros
        return self.fc(x.mean((2, 3)) * scale)


@pytest.fixture
def normed() -> nn.Module:
    model = seeded(Normed())
    with torch.no_grad():
        model.gamma.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        model.constant.fill_(0.1)
        model.zeros.zero_()
        model.norm.running_mean.fill_(0.3)
        model.norm.running_var.fill_(2.0)
    return model


def test_order_is_that_of_execution_and_what_did_not_run_is_listed(normed: nn.Module) -> None:
    with randomizing(normed, images()) as randomizer:
        assert randomizer.layers == ("conv", "norm", "", "fc")
        assert randomizer.unused == ("never",)
        assert list(randomizer.cascading()) == ["fc", "", "norm", "conv"]


def test_steps_add_up_or_stand_alone(normed: nn.Module) -> None:
    before = parameters(normed)
    bare = {"gamma", "zeros"}
    own = {
        "fc": {"fc.weight", "fc.bias"},
        "": bare,
        "norm": {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"},
        "conv": {"conv.weight", "conv.bias"},
    }
    with randomizing(normed, images()) as randomizer:
        seen: set[str] = set()
        for layer in randomizer.cascading():
            seen |= own[layer]
            assert different(normed, before) == seen
        assert not different(normed, before)
        for layer in randomizer.independent():
            assert different(normed, before) == own[layer]
    assert not different(normed, before)


def test_values_are_those_of_each_modules_initialization(normed: nn.Module) -> None:
    with randomizing(normed, images(), seed=3) as randomizer:
        randomizer.randomize()
        assert torch.equal(normed.norm.weight, torch.ones(4))
        assert torch.equal(normed.norm.running_mean, torch.zeros(4))
        assert torch.equal(normed.norm.running_var, torch.ones(4))
        bound = 27**-0.5  # uniform, of a convolution with 3 * 3 * 3 inputs
        assert 0.8 * bound < float(normed.conv.weight.abs().max()) <= bound
        assert sorted(normed.gamma.tolist()) == [1, 2, 3, 4]
        assert 0 < float(normed.zeros.std()) < 0.08
        assert randomizer.without_initializer == ("gamma", "constant", "zeros")
        assert randomizer.kept == ("constant",)


def test_layers_have_seeds_of_their_own_whatever_the_order(normed: nn.Module) -> None:
    twins = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).eval()

    def drawn(*steps: str, seed: int = 0, draw: int = 0) -> list[Tensor]:
        with randomizing(twins, torch.zeros(1, 1, 6), seed=seed) as randomizer:
            for step in steps:
                randomizer.randomize(step, draw=draw)
            return [twins[0].weight.detach().clone(), twins[1].weight.detach().clone()]

    first, second = drawn("0", "1")
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(drawn("1", "0"), (first, second), strict=True))
    assert not torch.equal(drawn("0", seed=1)[0], first)
    assert not torch.equal(drawn("0", draw=1)[0], first)


@pytest.mark.parametrize("fault", [False, True])
def test_nothing_stays(normed: nn.Module, fault: bool) -> None:
    vit = seeded(RestlessViT()).train()
    for model, batch in ((normed, images()), (vit, images(size=(8, 8)))):
        pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
        # The tensors are compared by identity, memory and value, with the generators of torch and NumPy.
        with unchanged(model, batch):
            try:
                with randomizing(model, batch) as randomizer:
                    randomizer.randomize()
                    GradCAM(model)(batch, 0)
                    if fault:
                        raise KeyError
            except KeyError:
                assert fault
        assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers


def test_draws_do_not_move_the_global_generator_within_the_block_either(normed: nn.Module) -> None:
    with randomizing(normed, images()) as randomizer:
        before = torch.get_rng_state()
        randomizer.randomize()
        assert torch.equal(torch.get_rng_state(), before)


def test_bare_parameters_of_a_transformer_change() -> None:
    model = seeded(TinyViT())
    before = parameters(model)
    with randomizing(model, images()) as randomizer:
        assert randomizer.layers[0] == "patch"
        assert randomizer.layers[-1] == "head"
        assert randomizer.layers.index("blocks.0.attn") < randomizer.layers.index("blocks.0.attn.out_proj")
        randomizer.randomize()
        assert different(model, before) == set(before)
        assert set(randomizer.without_initializer) == {"cls_token", "position"}
        assert randomizer.kept == ()


def test_half_precision_recurrence_tied_and_computed_weights() -> None:
    half = tiny().half()
    with unchanged(half), randomizing(half, images().half()) as randomizer:
        randomizer.randomize("stage1")
        assert half.stage1.weight.dtype == torch.float16

    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.last = weight_norm(nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(self.rnn(x.mT)[0][:, -1])))

    model, batch = seeded(Series()), images(size=(5,))
    expected = model(batch)
    with randomizing(model, batch) as randomizer:
        for name in randomizer.independent():
            assert not torch.allclose(model(batch), expected, atol=1e-4), name
        assert set(randomizer.layers) == {"rnn", "first", "second", "last", "last.parametrizations.weight"}
    assert torch.equal(model(batch), expected)


def test_a_layer_that_does_not_exist_is_an_error(normed: nn.Module) -> None:
    with (
        pytest.raises(LayerNotFoundError, match="no layer 'norn' with parameters; did you mean 'norm'"),
        randomizing(normed, images()) as randomizer,
    ):
        randomizer.randomize("norn")


def test_histograms_of_gradients_are_undefined_for_constant_maps_and_signals() -> None:
    maps = images(2, 1, (48, 48))[:, 0]
    flat = maps.clone()
    flat[1] = 4.0
    assert torch.isnan(hog_correlation(maps, flat)).tolist() == [False, True]
    assert float(hog_correlation(maps, maps)[0]) == pytest.approx(1)
    assert float(hog_correlation(maps, 3 * maps + 2)[0]) == pytest.approx(1)
    assert float(hog_correlation(maps, maps.flip(0))[0]) < 0.5
    assert torch.isnan(hog_correlation(maps[:, 0], maps[:, 0])).all()


def test_curve_of_a_cam_and_of_a_method_that_sees_nothing_but_the_images() -> None:
    model, batch = tiny(), images(2)
    cam = GradCAM(model, "relu2")

    def explain(rows: Tensor) -> Tensor:
        return cam.explain(rows, [1, 2]).saliency["relu2"]

    with unchanged(model, batch):
        curve = parameter_randomization(model, explain, batch)
        alone = parameter_randomization(model, explain, batch, mode="independent", layers=["stage1", "fc"])
    assert curve.layers == ("fc", "stage2", "stage1")
    assert alone.layers == ("fc", "stage1")
    assert set(curve.similarity) == {"spearman", "spearman of absolute values", "ssim", "pearson of hog"}
    for name, values in curve.similarity.items():
        assert values.shape == (3, 2)
        assert torch.equal(values[0], alone.similarity[name][0])  # the first step of both
        assert torch.allclose(curve.mean()[name], values.mean(1))
    assert (curve.similarity["spearman"] < 0.95).all()
    assert curve.status.tolist() == [[Status.OK] * 2] * 3
    blind = parameter_randomization(model, lambda rows: rows.mean(1), batch)
    assert torch.allclose(blind.similarity["spearman"], torch.ones(3, 2).double())


def test_maps_that_become_constant_have_no_similarity_and_say_so() -> None:
    model, batch = tiny(), images(2)
    seen = []

    def explain(rows: Tensor) -> Tensor:
        seen.append(rows)
        maps = rows.mean(1)
        if len(seen) == 3:  # after the second step
            maps[1] = 0.5
        return maps

    curve = parameter_randomization(model, explain, batch)
    assert curve.status.tolist() == [[Status.OK, Status.OK], [Status.OK, Status.DEGENERATE_MAP], [Status.OK, Status.OK]]
    for values in curve.similarity.values():
        assert torch.equal(values.isnan(), curve.status != int(Status.OK))


def similar(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """The similarities of two signed maps, by the functions of other libraries alone."""
    shown = []
    for signed in (a, b):
        pixels = torch.nn.functional.interpolate(torch.from_numpy(signed)[None, None], size, mode="bilinear")[
            0, 0
        ].numpy()
        shown.append((pixels - pixels.min()) / (pixels.max() - pixels.min()))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, everywhere = structural_similarity(*shown, full=True, **window)
    cells = {"pixels_per_cell": (size[0] // 3, size[0] // 3)}
    return {
        "spearman": spearmanr(a.ravel(), b.ravel()).statistic,
        "spearman of absolute values": spearmanr(np.abs(a).ravel(), np.abs(b).ravel()).statistic,
        "ssim": everywhere[5:-5, 5:-5].mean(),  # of windows that lie inside
        "pearson of hog": np.corrcoef(*(hog(pixels, **cells) for pixels in shown))[0, 1],
    }


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_the_curve_is_its_definition(mode: str) -> None:
    """Against the maps that `randomizing` gives, compared pair by pair."""
    model, batch = tiny(), images(3, size=(20, 20))
    cam = GradCAM(model, "relu1")

    def explain(rows: Tensor) -> Tensor:
        return cam.explain(rows, [1, 2, 0]).saliency["relu1"].double()

    found = parameter_randomization(model, explain, batch, mode=mode, seed=4)
    with randomizing(model, batch, seed=4) as randomizer:
        original = explain(batch).numpy()
        assert (original < 0).any(), "the sign has to matter"
        assert (original > 0).any()
        steps = randomizer.cascading() if mode == "cascading" else randomizer.independent()
        for place, _ in enumerate(steps):
            for i, (a, b) in enumerate(zip(original, explain(batch).numpy(), strict=True)):
                for name, expected in similar(a, b, (20, 20)).items():
                    assert float(found.similarity[name][place, i]) == pytest.approx(expected, abs=2e-3), name
    assert len(found.layers) == place + 1


def test_classes_and_methods_are_compared() -> None:
    model, batch = tiny(), images(2)
    of = {name: method(model, "relu2") for name, method in {"grad-cam": GradCAM, "eigen-cam": EigenCAM}.items()}
    two = of["grad-cam"].explain(batch, [[0, 1], [0, 1]]).saliency["relu2"]
    found = class_sensitivity(two[:, 0], two[:, 1])
    assert found.ok.all()
    assert (found.values < 0.9).all()
    one = of["eigen-cam"].explain(batch, [[0, 1], [0, 1]]).saliency["relu2"]
    assert class_sensitivity(one[:, 0], one[:, 1]).values.tolist() == pytest.approx([1, 1])
    flat = torch.stack([one[0, 0], torch.ones_like(one[0, 0])])
    assert class_sensitivity(one[:, 0], flat).ok.tolist() == [True, False]
    maps = {name: cam.explain(batch, 0).saliency["relu2"] for name, cam in of.items()}
    found = method_agreement(maps)
    assert found.details["pairs"].shape == (2, 2, 2)
    torch.testing.assert_close(found.details["pairs"][:, 0, 1], spearman(*maps.values()))
    torch.testing.assert_close(found.values, spearman(*maps.values()).float())
    assert found.ok.all()


def test_agreement_is_the_mean_over_pairs_and_flagged_where_a_map_has_no_ranks() -> None:
    maps = {name: torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(i)) - 0.5 for i, name in enumerate("abc")}
    maps["b"][1], maps["c"][2, 0, 0] = 2.0, torch.nan
    found = method_agreement(maps)
    assert [Status(int(one)).name for one in found.status] == ["OK", "DEGENERATE_MAP", "DEGENERATE_MAP", "OK"]
    for i in (0, 3):
        a, b, c = (one[i].flatten().numpy() for one in maps.values())
        expected = [spearmanr(*pair).statistic for pair in ((a, b), (a, c), (b, c))]
        assert float(found.values[i]) == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert found.details["pairs"][1].isnan().tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, False],
    ]
    assert found.details["pairs"][2].isnan()[2].all()
    assert found.settings["methods"] == ("a", "b", "c")
    assert len(method_agreement({name: one[:0] for name, one in maps.items()}).values) == 0
    with pytest.raises(OptionError, match="at least two"):
        method_agreement({"a": maps["a"]})

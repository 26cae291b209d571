"""Models with random parameters: what is drawn, in which order, and that nothing of it stays."""

from __future__ import annotations

import pytest
import torch
from models import RestlessViT, TinyViT, images, seeded, tiny
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from traces import unchanged

from gradcam_kit import GradCAM
from gradcam_kit.capture.model.randomization import randomizing
from gradcam_kit.errors import LayerNotFoundError


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

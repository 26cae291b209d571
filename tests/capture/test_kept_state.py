"""What modules keep beside parameters and buffers takes no part in a pass of ours, and is as before afterwards."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from traces import unchanged

from gradcam_kit import FullGrad, GradCAM, ScoreCAM
from gradcam_kit.capture.model.randomization import randomizing
from gradcam_kit.errors import InputError
from gradcam_kit.models import from_module

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


@dataclass(frozen=True)
class Record:
    maps: Tensor


class Net(nn.Module):
    """Keeps its maps as `keep` says, and multiplies them by what `table` gives."""

    def __init__(
        self, keep: Callable[..., Any] = lambda m, x: None, table: Callable[..., Any] = lambda m, x: 1
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.fc = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 3)
        self.keep, self.table, self.kept, self.grid, self.size = keep, table, [], None, None

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        self.keep(self, maps)
        return self.fc((maps * self.table(self, maps)).mean((2, 3)))


def expected(table: Callable[..., Any] = lambda m, x: 1) -> Tensor:
    return GradCAM(Net(table=table).eval(), "features")(IMAGES, 1)


KEEPS = {
    "attribute": lambda m, x: setattr(m, "last", x),
    "list": lambda m, x: m.kept.append(x),
    "dict in a list": lambda m, x: m.kept.append({"maps": x}),
    "tuple": lambda m, x: setattr(m, "last", (x, x.shape)),
    "frozen dataclass": lambda m, x: setattr(m, "last", Record(x)),
    "attribute of another module": lambda m, x: setattr(m.fc, "seen", x),
}


@pytest.mark.parametrize("keep", KEEPS)
def test_features_of_a_graph_are_kept_and_copied(keep: str) -> None:
    model = Net(KEEPS[keep]).eval()
    model(IMAGES)
    if keep != "attribute of another module":
        with unchanged(model):
            found = GradCAM(model, "features")(IMAGES, 1)
        assert torch.equal(found, expected())
        assert len(model.kept) == ("list" in keep)
    copied = from_module(model).model
    assert copied.fc.weight is not model.fc.weight
    assert copied.fc.weight.requires_grad
    assert torch.equal(GradCAM(copied, "features")(IMAGES, 1), expected())


def grid(maps: Tensor) -> Tensor:
    return torch.linspace(0, 1, maps[0, 0].numel()).view(maps.shape[2:])


def in_attribute(m: Net, maps: Tensor) -> Tensor:
    if m.grid is None or m.size != maps.shape[2:]:
        m.grid, m.size = grid(maps), maps.shape[2:]
    return m.grid


def in_closure() -> Callable[[Net, Tensor], Tensor]:
    known: dict[str, Tensor] = {}
    return lambda m, maps: known.setdefault("grid", grid(maps) if "grid" not in known else known["grid"])


def in_cache() -> Callable[[Net, Tensor], Tensor]:
    cached = functools.lru_cache(lambda size: torch.linspace(0, 1, size))
    return lambda m, maps: cached(maps[0, 0].numel()).view(maps.shape[2:])


def changed_in_place(m: Net, maps: Tensor) -> Tensor:
    if not m.kept:
        m.kept.append(grid(maps))
    return m.kept[0].mul_(1)


TABLES = {"attribute": lambda: in_attribute, "closure": in_closure, "cache": in_cache, "list": lambda: changed_in_place}


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, FullGrad])
@pytest.mark.parametrize("table", TABLES)
def test_tables_made_under_inference_mode(table: str, method: type) -> None:
    model = Net(table=TABLES[table]()).eval()
    with torch.inference_mode():
        model(IMAGES)
    reference = method(Net(table=lambda m, maps: grid(maps)).eval(), "features")(IMAGES, 1)
    with unchanged(model):
        found = method(model, "features")(IMAGES, 1)
    assert torch.equal(found, reference)
    assert torch.equal(GradCAM(model)(IMAGES, 1), GradCAM(Net(table=lambda m, maps: grid(maps)).eval())(IMAGES, 1))
    with torch.inference_mode():
        model(IMAGES)


def test_a_table_and_its_size_are_put_back_together() -> None:
    model = Net(table=in_attribute).eval()
    model(IMAGES)
    before = model.grid
    GradCAM(model, "features")(torch.randn(1, 3, 10, 10), 1)
    assert model.grid is before
    assert model.size == (6, 6)
    model(IMAGES)


def test_a_users_own_graph_is_not_walked() -> None:
    model = Net(lambda m, x: setattr(m, "last", x), lambda m, x: m.last.mean().sigmoid()).eval()
    loss = model(IMAGES).sum() + model.last.sum()
    last = model.last
    GradCAM(model, "features")(IMAGES, 1)
    assert model.last is last
    loss.backward()
    assert model.fc.weight.grad is not None


def reparametrized(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for layer in (model[0], model[4]):
        if kind == "weight_norm":
            nn.utils.weight_norm(layer)
        elif kind == "parametrized weight_norm":
            nn.utils.parametrizations.weight_norm(layer)
        elif kind == "spectral_norm":
            nn.utils.spectral_norm(layer)
        elif kind == "parametrized spectral_norm":
            nn.utils.parametrizations.spectral_norm(layer)
        else:
            prune.l1_unstructured(layer, "weight", amount=0.3)
    return model


NORMS = ["weight_norm", "parametrized weight_norm", "spectral_norm", "parametrized spectral_norm", "pruned"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", NORMS)
def test_computed_weights_in_copies_and_randomizations(kind: str) -> None:
    model = reparametrized(kind)
    model(IMAGES).sum().backward()  # whose graph the computed weights belong to
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    with unchanged(model):
        found = GradCAM(model, "1")(IMAGES, 1)
    copied = from_module(model).model
    assert [name for name, _ in copied.named_parameters()] == names
    torch.testing.assert_close(GradCAM(copied, "1")(IMAGES, 1), found)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(-0.5)
    assert torch.equal(GradCAM(model, "1")(IMAGES, 1), found)  # nothing is shared
    with torch.no_grad():
        before = model(IMAGES)
        with randomizing(model, IMAGES) as randomizer:
            randomizer.randomize()
            assert not torch.allclose(model(IMAGES), before)
        torch.testing.assert_close(model(IMAGES), before)


def test_what_cannot_be_copied_is_named() -> None:
    model = Net()
    model.features[0].numbers = (i for i in range(3))
    with pytest.raises(InputError, match=r"attribute 'features.0.numbers' holds a generator"):
        from_module(model)
    model = Net()
    model.forward = lambda x: model.fc(model.features(x).mean((2, 3)))
    with pytest.raises(InputError, match="attribute 'forward' is a function that holds the model"):
        from_module(model)


def test_a_forward_that_is_bound_to_its_module_is_copied_with_it() -> None:
    model = Net().eval()
    model.features.forward = MethodType(lambda self, x: 2 * nn.Sequential.forward(self, x), model.features)
    expected = model(IMAGES)
    copied = from_module(model).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(IMAGES), expected)
    module = model.features
    model.features.forward = MethodType(lambda self, x: nn.Sequential.forward(module, x), model.features)
    with pytest.raises(InputError, match=r"attribute 'features\.forward' is a function that holds the model"):
        from_module(model)


class Compiled:
    """A backend that runs the graph as it is, and counts its runs."""

    runs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        self.runs += 1
        return graph.forward


@pytest.mark.parametrize("part", ["", "features"])
def test_a_forward_compiled_in_place_is_explained_and_copied_as_it_was(part: str) -> None:
    model = Net().eval()
    module = model.get_submodule(part)
    module.forward = torch.compile(module.forward, backend=Compiled())
    model(IMAGES)
    with unchanged(model):
        assert torch.equal(GradCAM(model, "features.0")(IMAGES, 1), GradCAM(Net().eval(), "features.0")(IMAGES, 1))
    copied = from_module(model).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(GradCAM(copied, "features.0")(IMAGES, 1), GradCAM(Net().eval(), "features.0")(IMAGES, 1))
    torch._dynamo.reset()


def test_copies_after_a_call_need_nothing_of_ours() -> None:
    model = Net(lambda m, x: setattr(m, "last", x)).eval()
    GradCAM(model, "features")(IMAGES, 1)
    copy.deepcopy(model)
    assert "last" not in vars(model)

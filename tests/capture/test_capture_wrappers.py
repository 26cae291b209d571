"""Models inside of wrappers: compiled, DataParallel, TorchScript, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import TinyCNN, build, conv_model, images, seeded, tiny
from torch import nn
from torch.utils.checkpoint import checkpoint
from traces import unchanged

from gradcam_kit import EigenCAM, GradCAM, ScoreCAM
from gradcam_kit.capture import check_model
from gradcam_kit.errors import CaptureError, InputError

INPUT = images(3, size=(8, 8))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    yield
    torch._dynamo.reset()


class Backend:
    """A compiler backend that runs the graph as it is and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def compiled(model: nn.Module, backend: Backend) -> nn.Module:
    return torch.compile(model, backend=backend)


def compiled_in_place(model: nn.Module, backend: Backend) -> nn.Module:
    model.compile(backend=backend)
    return model


def compiled_part(model: nn.Module, backend: Backend) -> nn.Module:
    model.stage2 = torch.compile(model.stage2, backend=backend)
    return model


def compiled_part_in_place(model: nn.Module, backend: Backend) -> nn.Module:
    # A class of its own, because up to torch 2.11 the compiler skips the calls of torch's own classes.
    model.stage2.__class__ = type("Own", (nn.Conv2d,), {"forward": lambda self, x: nn.Conv2d.forward(self, x)})
    model.stage2.compile(backend=backend)
    return model


WRAPPERS: dict[str, tuple[Callable[[nn.Module, Backend], nn.Module], list[str]]] = {
    "compiled": (compiled, ["stage2", "_orig_mod.stage2"]),
    "compiled in place": (compiled_in_place, ["stage2"]),
    "compiled part": (compiled_part, ["stage2", "stage2._orig_mod"]),
    "compiled part in place": (compiled_part_in_place, ["stage2"]),
    "DataParallel": (lambda model, _: nn.DataParallel(model), ["stage2", "module.stage2"]),
    "DataParallel, compiled": (
        lambda model, backend: nn.DataParallel(compiled(model, backend)),
        ["stage2", "module._orig_mod.stage2"],
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_give_the_same_maps_and_stay_wrapped(wrapper: str) -> None:
    wrap, names = WRAPPERS[wrapper]
    backend = Backend()
    model = wrap(tiny(), backend)
    with torch.no_grad():
        output = model(INPUT)
    runs = backend.runs
    for name in names:
        for target_layers in (name, dict(model.named_modules())[names[-1]]):
            assert torch.equal(GradCAM(model, target_layers)(INPUT), GradCAM(tiny(), "stage2")(INPUT))
        assert GradCAM(model, name).explain(INPUT).layers == (name,)
        assert torch.equal(ScoreCAM(model, name)(INPUT), ScoreCAM(tiny(), "stage2")(INPUT))
    assert torch.equal(GradCAM(model)(INPUT), GradCAM(tiny())(INPUT))
    assert backend.runs == runs
    with torch.no_grad():
        assert torch.equal(model(INPUT), output)
    assert backend.runs == 2 * runs
    assert (runs > 0) == ("ompiled" in wrapper)


@pytest.mark.filterwarnings("ignore:`?torch.jit")
def test_torchscript_has_a_clear_error() -> None:
    scripted, traced, part = torch.jit.script(tiny()), torch.jit.trace(tiny(), INPUT), tiny()
    part.stage2 = torch.jit.script(part.stage2)
    for model in (scripted, traced):
        with pytest.raises(InputError, match=r"TorchScript.*original"):
            GradCAM(model, "stage2")
    with pytest.raises(InputError, match="'stage2' is a TorchScript module"):
        GradCAM(part, "stage2")
    assert torch.equal(GradCAM(part, "stage1")(INPUT), GradCAM(tiny(), "stage1")(INPUT))
    assert GradCAM(part).explain(INPUT).layers == ("relu2",)


@pytest.mark.parametrize("model", [lambda x: x, "resnet50", None, TinyCNN])
def test_what_is_no_module_has_a_clear_error(model: Any) -> None:
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        check_model(model)


# Gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", ["first", "layer", ["first", "layer"]], ids=str)
def test_checkpointing_behind_the_layers_changes_nothing(layer: Any, reentrant: bool) -> None:
    parts = dict(conv_model().named_children())
    tail = lambda m, y: m.fc(y.relu().square().mean((2, 3)))  # noqa: E731
    plain = build(lambda m, x: tail(m, m.layer(m.first(x).relu())), **parts)
    wrapped = build(
        lambda m, x: checkpoint(lambda y: tail(m, y), m.layer(m.first(x).relu()), use_reentrant=reentrant), **parts
    )
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    with unchanged(wrapped, INPUT):
        heatmaps = GradCAM(wrapped, layer)(INPUT, targets)
    torch.testing.assert_close(heatmaps, GradCAM(plain, layer)(INPUT, targets), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("held", [None, torch.tensor(7.0)])
def test_a_targets_own_gradient_survives_a_checkpoint(held: torch.Tensor | None) -> None:
    model = build(
        lambda m, x: checkpoint(lambda y: m.fc(y.relu().mean((2, 3))), m.layer(m.first(x)), use_reentrant=True),
        **dict(conv_model().named_children()),
    )
    scale = torch.tensor(2.0, requires_grad=True)
    scale.grad = held
    GradCAM(model, "layer")(INPUT, lambda output: scale * output[:, 0])
    assert scale.grad is held
    assert held is None or held == 7


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_the_layer_is_right_or_an_error(reentrant: bool) -> None:
    model = build(lambda m, x: checkpoint(m.body, x, use_reentrant=reentrant), body=TinyCNN())
    plain = build(lambda m, x: m.body(x), body=TinyCNN())
    layers = ["body.stage1", "body.stage2"]
    if reentrant:
        with unchanged(model, INPUT), pytest.raises(CaptureError, match="reentrant checkpoint"):
            GradCAM(model, layers)(INPUT)
    else:
        assert torch.equal(GradCAM(model, layers)(INPUT), GradCAM(plain, layers)(INPUT))
    assert torch.equal(ScoreCAM(model, "body.relu2")(INPUT), ScoreCAM(plain, "body.relu2")(INPUT))


def checkpointed(reentrant: bool, behind: bool = False) -> nn.Module:
    """A network whose second stage runs inside of a checkpoint; `behind` has another stage after it."""
    parts = dict(conv_model().named_children())
    third = {"third": seeded(nn.Conv2d(parts["layer"].out_channels, parts["layer"].out_channels, 1))} if behind else {}

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        maps = checkpoint(m.layer, m.first(x).relu(), use_reentrant=reentrant)
        return m.fc((m.third(maps) if behind else maps).relu().mean((2, 3)))

    return build(forward, **parts, **third)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_the_search_for_a_layer_meets_reentrant_checkpoints() -> None:
    plain, wrapped = checkpointed(False), checkpointed(True)
    assert GradCAM(plain).explain(INPUT).layers == ("layer",)
    for cam in (GradCAM(wrapped), GradCAM(wrapped, "layer")):
        with unchanged(wrapped, INPUT), pytest.raises(CaptureError, match=r"'layer'.*reentrant checkpoint"):
            cam(INPUT)
    for method in (EigenCAM, ScoreCAM):
        with unchanged(wrapped, INPUT):
            found = method(wrapped).explain(INPUT)
        assert found.layers == ("layer",)
        torch.testing.assert_close(found.heatmaps, method(plain)(INPUT), atol=1e-5, rtol=1e-5)
    inside = build(lambda m, x: checkpoint(m.body, x, use_reentrant=True), body=TinyCNN())
    with pytest.raises(CaptureError, match="reentrant checkpoint"):
        GradCAM(inside)(INPUT)
    assert torch.equal(EigenCAM(inside)(INPUT), EigenCAM(build(lambda m, x: m.body(x), body=TinyCNN()))(INPUT))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_behind_a_checkpoint_is_found(reentrant: bool) -> None:
    model = checkpointed(reentrant, behind=True)
    with unchanged(model, INPUT):
        explanation = GradCAM(model).explain(INPUT)
    assert explanation.layers == ("third",)
    torch.testing.assert_close(explanation.heatmaps, GradCAM(checkpointed(False, True), "third")(INPUT))

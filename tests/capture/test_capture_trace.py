"""A call leaves nothing behind: neither in the model nor in torch, whether it succeeds or fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from evidence import ANY_LAYER, LAYERED, ON_TOKENS, quick
from models import Restless, RestlessViT, build, conv_model, images, seeded
from representatives import ON_CLASSES, each, representatives
from torch import Tensor, nn
from traces import FaultError, fault, traces, unchanged

from gradcam_kit import METHODS, GradCAM, ScoreCAM
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.errors import CaptureError, ClassIndexError, NonFiniteError, ShapeError

INPUT = images(2, size=(8, 8))


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def restless(name: str = "grad-cam") -> nn.Module:
    """Flags, modes, gradients and hooks of every kind, in a model that writes a buffer and draws random numbers."""
    model = seeded(RestlessViT() if name in ON_TOKENS else Restless())
    first, *_, last = (module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    model.train()
    model.drop.eval()
    last.train(False)
    first.weight.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    first.register_forward_hook(lambda module, args, output: output * 1.5)
    last.register_forward_pre_hook(lambda module, args: None)
    model.register_full_backward_pre_hook(lambda module, gradients: None)
    return model


def layer_of(name: str) -> str:
    return "blocks.1.norm1" if name in ON_TOKENS else "relu2"


@pytest.mark.parametrize("name", each())
def test_success_leaves_no_trace(name: str) -> None:
    model = restless(name)
    for layers in (layer_of(name), None, *((["norm", "relu2"],) if name in ANY_LAYER else ())):
        with unchanged(model, INPUT):
            cam = quick(name)(model, layers)
        for targets in (None, torch.tensor([[0, 1], [2, 4]]), lambda logits: logits[:, 1]):
            with unchanged(model, INPUT):
                assert cam(INPUT, targets).isfinite().all()


def broken(name: str) -> type:
    """The method with an arithmetic that raises."""
    return type("Broken", (METHODS[name],), dict.fromkeys(("weights", "saliency", "saliencies"), fault))


def nan_gradient(x: Tensor) -> Tensor:
    return (x - x).sqrt() + x


def fails_later(model: nn.Module) -> None:
    """The second forward pass raises: a masked one, or none at all."""
    passes = iter([lambda x: x, lambda x: x])
    model.fault.forward = lambda x: next(passes, fault)(x)


FAILURES: dict[str, tuple[Callable[[nn.Module], Any], Any, type[BaseException]]] = {
    "model raises behind the layer": (lambda m: setattr(m.fault, "forward", fault), None, FaultError),
    "model raises before the layer": (lambda m: setattr(m.drop, "forward", fault), None, FaultError),
    "layer raises": (lambda m: setattr(m.relu2, "forward", fault), None, FaultError),
    "keyboard interrupt": (lambda m: setattr(m.fault, "forward", interrupt), None, KeyboardInterrupt),
    "target raises": (lambda m: None, fault, FaultError),
    "target returns a vector per sample": (lambda m: None, lambda logits: logits, ShapeError),
    "class out of range": (lambda m: None, 5, ClassIndexError),
    "wrong number of targets": (lambda m: None, [0, 1, 2], ShapeError),
    "activations are NaN": (lambda m: setattr(m.drop, "forward", lambda x: x * float("nan")), None, NonFiniteError),
    "layer runs twice": (lambda m: setattr(m.fault, "forward", lambda x: m.relu2(x)), None, CaptureError),
    "layer does not run": (
        lambda m: setattr(m, "forward", lambda x: m.fc(x.mean(3)[:, :2].flatten(1)[:, :6])),
        None,
        CaptureError,
    ),
}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["kinds", "all"])
@pytest.mark.parametrize("failure", FAILURES)
def test_failure_leaves_no_trace(failure: str, whole: bool) -> None:
    arm, targets, error = FAILURES[failure]
    suited = LAYERED if failure.startswith("layer") else ON_CLASSES
    for name in suited if whole else representatives(suited):
        model = restless(name)
        arm(model)
        cam = quick(name)(model, layer_of(name))
        with unchanged(model, INPUT), pytest.raises(error):
            cam(INPUT, targets)


@pytest.mark.parametrize("name", each())
def test_method_that_raises_leaves_no_trace(name: str) -> None:
    model = restless(name)
    with unchanged(model, INPUT), pytest.raises(FaultError):
        broken(name)(model, layer_of(name))(INPUT)


@pytest.mark.parametrize("layer", ["relu2", None])
def test_nan_images_leave_no_trace(layer: str | None) -> None:
    model, bad = restless(), INPUT.clone()
    bad[1, 0, 3, 3] = float("nan")
    with unchanged(model, bad), pytest.raises(NonFiniteError, match="image 1"):
        GradCAM(model, layer)(bad)


def test_gradients_that_are_nan_leave_no_trace() -> None:
    model = restless()
    model.fault.forward = nan_gradient
    with unchanged(model, INPUT), pytest.raises(NonFiniteError, match=r"gradients at layer 'relu2'.*image 0"):
        GradCAM(model, "relu2")(INPUT)


def test_masked_pass_that_raises_leaves_no_trace() -> None:
    model = restless()
    fails_later(model)
    with unchanged(model, INPUT), pytest.raises(FaultError):
        ScoreCAM(model, "relu2", batch_size=4)(INPUT)


def test_automatic_choice_that_raises_leaves_no_trace() -> None:
    model = restless()
    model.fault.forward = fault
    with unchanged(model, INPUT), pytest.raises(FaultError):
        GradCAM(model)(INPUT)


@pytest.mark.parametrize("layers", ["nowhere", [], 7, ["relu2", "nowhere"]], ids=str)
def test_constructor_that_fails_leaves_no_trace(layers: Any) -> None:
    model = restless()
    with unchanged(model), pytest.raises((LookupError, TypeError)):
        GradCAM(model, layers)


@pytest.mark.parametrize("error", [None, FaultError])
def test_state_around_the_call_is_kept(error: type[Exception] | None) -> None:
    model = restless()
    model.fault.forward = fault if error else lambda x: x
    cam = GradCAM(model, "relu2")
    contexts = (torch.no_grad(), torch.enable_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16))
    for context in contexts:
        with context, unchanged(model, INPUT):
            if error:
                with pytest.raises(error):
                    cam(INPUT)
            else:
                cam(INPUT)


def test_inside_of_a_call_the_model_is_frozen_and_in_eval_mode() -> None:
    model = restless()
    with torch.inference_mode(), unchanged(model), untouched(model, torch.device("cpu")):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        with untouched(model, torch.device("cpu")):  # entering again changes nothing
            model.train()
        assert model.training
        model.eval()


def test_buffers_that_the_forward_replaces_are_put_back() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        m.counter = m.counter + 1
        m.cache = x
        m.written[0].add_(1)
        return m.fc(m.layer(x).relu().mean((2, 3)))

    model = build(run, layer=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 5))
    for name, value in (("counter", torch.zeros(3)), ("cache", None), ("written", torch.zeros(2))):
        model.register_buffer(name, value)
    with unchanged(model, INPUT):
        GradCAM(model, "layer")(INPUT)
    assert model.cache is None


def test_what_a_layer_keeps_of_its_output_joins_no_graph() -> None:
    model = conv_model()
    kept = []
    forward = model.layer.forward

    def keeping(maps: Tensor) -> Tensor:
        kept.append(forward(maps))
        return kept[-1]

    model.layer.forward = keeping
    GradCAM(model, "layer")(INPUT)
    assert kept
    assert not any(tensor.requires_grad for tensor in kept)


def test_traces_see_what_a_careless_call_does() -> None:
    # The guard itself: a plain training step must be caught in all the places that the tests above look at.
    model = restless()
    before = traces(model)
    handle = model.relu2.register_forward_hook(lambda *_: None)
    model.eval()
    model.fc.weight.requires_grad_(False)
    model(INPUT).sum().backward()
    after = traces(model)
    assert handle is not None
    changed = {key for key in before if key.startswith("global") is False and before[key] is not after[key]}
    assert {"_forward_hooks of relu2", "training of norm", "requires_grad of fc.weight", "values of .calls"} <= changed
    with pytest.raises(AssertionError, match=r"values of the gradient of fc\.bias"), unchanged(model):
        model(INPUT).sum().backward()

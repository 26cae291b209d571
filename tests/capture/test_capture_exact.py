"""The captured numbers, and the maps, are exact whatever surrounds the layer and the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from evidence import ANY_LAYER, LAYERED, ON_CNNS, ON_TOKENS, Spy, close, evidence, quick, subject
from models import Restless, TinyCNN, build, conv_model, images, seeded, tiny
from representatives import ON_CLASSES, each
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit import GradCAM, ScoreCAM
from gradcam_kit.targets import ClassLogit, ClassProbability, LogitDifference

INPUT = images(3, size=(8, 8))

IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "module": (nn.ReLU(inplace=True), torch.relu),
    "function": (functional.relu_, torch.relu),
    "whole view": (lambda y: y.view(len(y), -1).relu_().view_as(y), torch.relu),
    "part of it": (lambda y: (y[:, :2].relu_(), y)[1], lambda y: torch.cat([y[:, :2].relu(), y[:, 2:]], 1)),
    "several times": (lambda y: y.mul_(0.5).add_(1).sigmoid_(), lambda y: (0.5 * y + 1).sigmoid()),
    "sum onto it": (lambda y: y.add_(2 * y).relu_(), lambda y: (3 * y).relu()),
    "overwritten": (lambda y: y.relu().mul(1) + y.zero_(), torch.relu),
}


@pytest.mark.parametrize("how", IN_PLACE)
@pytest.mark.parametrize("layer", ["first", "layer"])
def test_activations_and_gradients_equal_plain_autograd(how: str, layer: str) -> None:
    in_place, plain = IN_PLACE[how]
    model = conv_model(in_place, before=in_place).double()
    x = INPUT.double()
    first = model.first(x).detach().requires_grad_()
    other = model.layer(plain(first))
    logits = model.fc(plain(other).mean((2, 3)))
    classes = torch.tensor([4, 0, 2])
    gradients = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), [first, other])
    seen = evidence(model, layer, x, classes)
    expected = {"first": (first, gradients[0]), "layer": (other, gradients[1])}[layer]
    assert torch.equal(seen.activations, expected[0])
    assert close(seen.gradients, expected[1], 1e-15)
    assert torch.equal(seen.scores, logits.gather(1, classes[:, None])[:, 0])
    assert seen.activations.min() < 0 < expected[1].abs().max()


@pytest.mark.parametrize("name", each(ON_CNNS))
def test_in_place_relu_changes_no_map(name: str) -> None:
    for layer in ("stage1", "relu1", "stage2", "relu2") if name in ANY_LAYER else ("relu2",):
        one, other = (quick(name)(tiny(inplace=inplace), layer).explain(INPUT) for inplace in (True, False))
        assert close(one.saliency[one.layers[0]], other.saliency[one.layers[0]])
        assert one.saliency[one.layers[0]].std() > 0


@pytest.mark.parametrize("name", each())
def test_frozen_equals_trainable_bit_for_bit(name: str) -> None:
    for targets in (None, torch.tensor([[0, 1], [2, 3], [4, 0]])):
        model, layer = subject(name)
        trainable = quick(name)(model, layer)(INPUT, targets)
        assert torch.equal(quick(name)(model.requires_grad_(False), layer)(INPUT, targets), trainable)


@pytest.mark.parametrize("name", each())
def test_context_of_the_call_changes_no_map(name: str) -> None:
    classes = torch.tensor([[0, 1], [2, 3], [4, 0]])
    model, named = subject(name)
    for context, layer in ((torch.no_grad, named), (torch.inference_mode, named), (torch.inference_mode, None)):
        expected = quick(name)(model, layer)(INPUT, classes)
        with context():
            inside = quick(name)(model, layer)(INPUT.clone(), classes.clone())
        assert torch.equal(inside, expected)
        assert not inside.requires_grad


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_changes_no_map() -> None:
    expected = GradCAM(tiny())(INPUT)
    with torch.autograd.set_detect_anomaly(True):
        assert torch.equal(GradCAM(tiny())(INPUT), expected)


@pytest.mark.parametrize("target", [ClassLogit, ClassProbability, LogitDifference])
def test_targets_made_in_inference_mode(target: Any) -> None:
    cam = GradCAM(tiny(), "relu2")
    expected = cam(INPUT, target([0, 1, 2]))
    with torch.inference_mode():
        made_inside = target(torch.tensor([0, 1, 2]))
        assert torch.equal(cam(INPUT, made_inside), expected)
    assert torch.equal(cam(INPUT, made_inside), expected)


@pytest.mark.parametrize("name", each())
def test_inputs_of_any_origin_give_the_same_maps(name: str) -> None:
    cam = quick(name)(*subject(name))
    expected = cam(INPUT)
    with torch.inference_mode():
        inferred = INPUT.clone()
    leaf = INPUT.clone().requires_grad_()
    assert torch.equal(cam(leaf), expected)
    for images_ in (inferred, leaf * 1.0, nn.Parameter(INPUT)):
        assert torch.equal(cam(images_), expected)
    assert leaf.grad is None


def test_model_made_in_inference_mode_is_explained_and_kept() -> None:
    with torch.inference_mode():
        model = seeded(Restless())
    tensors = [*model.parameters(), *model.buffers()]
    heatmaps = GradCAM(model, "relu2")(INPUT)
    assert torch.equal(heatmaps, GradCAM(seeded(Restless()), "relu2")(INPUT))
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert all(tensor.is_inference() for tensor in tensors)


def test_model_that_runs_itself_in_inference_mode() -> None:
    model = tiny()
    expected = ScoreCAM(model, "relu2")(INPUT)
    model.forward = torch.inference_mode()(model.forward)
    assert torch.equal(ScoreCAM(model, "relu2")(INPUT), expected)


@pytest.mark.parametrize("name", each(ON_CNNS))
def test_train_mode_is_explained_in_eval_mode(name: str) -> None:
    model = seeded(Restless())
    model.norm.running_mean += torch.arange(4.0)
    model.norm.running_var *= 3
    expected = quick(name)(model, "relu2")(INPUT)
    for mode in (model.train, model.norm.train, lambda: model.drop.train()):
        model.eval()
        mode()
        flags = [module.training for module in model.modules()]
        assert any(flags)
        assert torch.equal(quick(name)(model, "relu2")(INPUT), expected)
        assert [module.training for module in model.modules()] == flags
    assert model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("name", each())
def test_global_random_state_changes_no_map(name: str) -> None:
    cam = quick(name)(*subject(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = cam(INPUT)
        torch.manual_seed(2)
        assert torch.equal(cam(INPUT), expected)


# Precision


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", each(name for name in ON_CLASSES if name != "rise"))
def test_other_precision_is_close_to_float32(name: str, dtype: torch.dtype, tolerance: float) -> None:
    # Not of RISE, whose masks belong to the values of the images, so that rounding changes them.
    model, layer = subject(name)
    expected = quick(name)(model, layer)(INPUT)
    explanation = quick(name)(model.to(dtype), layer).explain(INPUT.to(dtype))
    widened = torch.float64 if dtype == torch.float64 else torch.float32
    assert explanation.heatmaps.dtype == torch.float32
    assert explanation.scores.dtype == widened
    assert {maps.dtype for maps in explanation.saliency.values()} == {widened}
    # On average, because a ReLU near 0 may fall to the other side; four tokens differ little, so rounding weighs more.
    assert (explanation.heatmaps - expected).abs().mean() < tolerance * (10 if name in ON_TOKENS else 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_model_gets_the_same_automatic_layer(dtype: torch.dtype) -> None:
    explanation = GradCAM(tiny().to(dtype)).explain(INPUT.to(dtype))
    assert explanation.layers == GradCAM(tiny()).explain(INPUT).layers == ("relu2",)
    assert close(explanation.heatmaps, GradCAM(tiny())(INPUT), 0.05)


def test_evidence_is_float32_and_taken_in_the_model_s_precision() -> None:
    half = evidence(tiny().bfloat16(), "stage2", INPUT.bfloat16())
    rescored = half.rescore(half.images, torch.arange(3))
    assert {half.activations.dtype, half.gradients.dtype, half.scores.dtype, rescored.dtype} == {torch.float32}
    assert torch.equal(half.activations, half.activations.bfloat16().float())
    assert torch.equal(half.gradients, half.gradients.bfloat16().float())
    assert torch.equal(rescored, half.scores)


class Arithmetic(Spy):
    """A method that multiplies matrices."""

    def saliency(self, layer: Any) -> Tensor:
        flat = layer.activations.flatten(2)
        self.product = flat.mT @ flat
        self.rescored = layer.rescore(layer.images, torch.arange(len(layer.images)))
        return super().saliency(layer)


def test_under_autocast_the_model_is_cast_and_the_method_is_not() -> None:
    cam = Arithmetic(tiny(), "relu2")
    plain = cam.explain(INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        cast = cam.explain(INPUT)
    flat = cam.seen["relu2"].activations.flatten(2)
    assert torch.equal(cam.product, flat.mT @ flat)
    assert cam.product.dtype == cast.saliency["relu2"].dtype == cast.heatmaps.dtype == torch.float32
    assert cast.output.dtype == torch.bfloat16
    assert torch.equal(cam.rescored, cast.scores)
    assert 0 < (cast.scores - plain.scores).abs().max() < 0.05


@pytest.mark.parametrize("name", each())
def test_autocast_is_close_to_float32(name: str) -> None:
    weight = images(5, 2, (1,))[..., 0]
    cam = quick(name)(*subject(name))
    # A target of tensors meets the cast output where the user wrote it: under autocast.
    for targets in (None, lambda logits: (logits @ weight)[:, 0]):
        expected = cam(INPUT, targets)
        with torch.autocast("cpu", torch.bfloat16):
            heatmaps = cam(INPUT, targets)
        assert heatmaps.dtype == torch.float32
        if name != "vit-recipro-cam":  # scores of its four tokens differ by less than bfloat16 resolves
            assert (heatmaps - expected).abs().mean() < 0.02


# Inputs


@pytest.mark.parametrize("name", each())
def test_channels_last_memory_changes_no_map(name: str) -> None:
    cam, last = quick(name)(*subject(name)), quick(name)(*subject(name))
    x = INPUT
    if name == "vit-recipro-cam":  # scores of its four tokens differ so little that min-max enlarges rounding
        x = INPUT.double()
        cam.model.double(), last.model.double()
    last.model.to(memory_format=torch.channels_last)
    expected = cam(x)
    strided = x.to(memory_format=torch.channels_last)
    for heatmaps in (cam(strided), last(strided), last(x)):
        assert close(heatmaps, expected, 1e-5)
        assert heatmaps.is_contiguous()


@pytest.mark.parametrize("name", each())
def test_inputs_stay_as_they_are_though_the_model_writes_into_them(name: str) -> None:
    def careless(m: nn.Module, x: Tensor, factor: Tensor) -> Tensor:
        return m.body(x.sub_(0.3).mul_(factor.add_(1)))

    model = build(careless, body=subject(name)[0])
    x, factor = INPUT.clone(), torch.ones(())
    explanation = quick(name)(model).explain(x, factor=factor)
    layers = list(explanation.saliency)
    if name in LAYERED:
        quick(name)(model, layers)(x, factor=factor)
    assert torch.equal(x, INPUT)
    assert factor == 1
    model.run = lambda m, x, factor: m.body((x - 0.3) * (factor + 1))
    assert close(explanation.heatmaps, quick(name)(model)(x, factor=factor), 1e-5)


def test_rescored_rows_stay_as_they_are_though_the_model_writes_into_them() -> None:
    model = build(lambda m, x: m.body(x.relu_()), body=TinyCNN())
    rows = INPUT.clone()
    evidence(model, "body.relu2", INPUT).rescore(rows, torch.arange(3))
    assert torch.equal(rows, INPUT)


def test_containers_that_return_the_same_tensor_are_both_right() -> None:
    # The hook of the container sees the very tensor that its last module returned.
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU())), nn.ReLU(inplace=True))
    model = seeded(nn.Sequential(nested, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    one, other, together = (
        evidence(model, "0.0", INPUT),
        evidence(model, "0.0.1.0", INPUT),
        Spy(model, ["0.0", "0.0.1.0"]),
    )
    together.explain(INPUT)
    for seen in (one, other, *together.seen.values()):
        assert torch.equal(seen.activations, one.activations)
        assert torch.equal(seen.gradients, one.gradients)

"""Models as they come: wrapped, compiled, with outputs, inputs and layers of every kind."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, MutableMapping
from itertools import product
from typing import Any

import pytest
import torch
from evidence import ANY_LAYER, LAYERED, Spy, evidence, quick, subject
from models import Apply, TinyCNN, build, conv_model, images, tiny
from representatives import ON_CLASSES, each
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from gradcam_kit import EinsumCAM, GradCAM, ScoreCAM
from gradcam_kit.errors import CaptureError, ShapeError, TargetError

INPUT = images(3, size=(8, 8))


# Outputs

Pair = namedtuple("Pair", "logits extra")


class Around(MutableMapping[str, Any]):
    """Keeps its entries in a dictionary of its own, and takes tensors alone."""

    def __init__(self, **entries: Tensor) -> None:
        self.entries = entries

    def __getitem__(self, key: str) -> Tensor:
        return self.entries[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} is {value!r}")
        self.entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda z: (z, "name", 3),
    "list": lambda z: [torch.arange(3), z],
    "dict": lambda z: {"prediction": z, "ids": torch.arange(3)},
    "dict with logits": lambda z: {"loss": z.sum(), "logits": z},
    "OrderedDict": lambda z: OrderedDict(prediction=z),
    "named tuple with logits": lambda z: Pair(z, z.mean()),
    "mapping": lambda z: Around(prediction=z),
    "ModelOutput": lambda z: ImageClassifierOutput(logits=z),
    "ModelOutput with loss": lambda z: ImageClassifierOutput(loss=z.mean(), logits=z, hidden_states=(z, z)),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(("grad-cam", "score-cam", "einsum-cam"), OUTPUTS),
        *each((name, "ModelOutput with loss") for name in ON_CLASSES),
    ],
)
def test_outputs_of_many_kinds_are_read(name: str, kind: str) -> None:
    body, layer = subject(name)
    model = build(lambda m, x: OUTPUTS[kind](m.body(x)), body=body)
    plain = build(lambda m, x: m.body(x), body=body)
    expected = quick(name)(plain, f"body.{layer}").explain(INPUT)
    explanation = quick(name)(model, f"body.{layer}").explain(INPUT)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)
    assert torch.equal(explanation.targets, expected.targets)
    assert type(explanation.output) is type(OUTPUTS[kind](torch.zeros(3, 5)))


@pytest.mark.parametrize("name", each(ANY_LAYER))
def test_a_callable_gets_the_output_as_it_is(name: str) -> None:
    plain = build(lambda m, x: m.body(x), body=TinyCNN())
    model = build(lambda m, x: {"b": (z := m.body(x)), "a": z.square()}, body=TinyCNN())
    heatmaps = quick(name)(model, "body.stage2")(INPUT, lambda output: output["b"][:, 2])
    assert torch.equal(heatmaps, quick(name)(plain, "body.stage2")(INPUT, lambda logits: logits[:, 2]))


def test_a_callable_for_a_head_gets_the_output_as_it_is() -> None:
    for wrap, unwrap in (
        (lambda z: {"logits": z}, lambda output: output["logits"]),
        (lambda z: ImageClassifierOutput(logits=z), lambda output: output.logits),
    ):
        model = build(lambda m, x, wrap=wrap: wrap(m.body(x)), body=TinyCNN())
        plain = build(lambda m, x: m.body(x), body=TinyCNN())
        heatmaps = EinsumCAM(model, "body.relu2")(INPUT, lambda output, unwrap=unwrap: unwrap(output).square()[:, 1])
        assert torch.equal(heatmaps, EinsumCAM(plain, "body.relu2")(INPUT, lambda z: z.square()[:, 1]))


def test_ambiguous_outputs_are_an_error_that_lists_them() -> None:
    model = conv_model(output=lambda z: (z, torch.ones(3, 2)))
    with pytest.raises(TargetError, match=r"tuple with 2 floating-point tensors \(\(3, 5\), \(3, 2\)\).*callable"):
        GradCAM(model, "layer")(INPUT)
    expected = GradCAM(conv_model(), "layer")(INPUT, lambda z: z[:, 1])
    assert torch.equal(GradCAM(model, "layer")(INPUT, lambda output: output[0][:, 1]), expected)
    assert torch.equal(
        ScoreCAM(model, "layer")(INPUT, lambda output: output[0][:, 1]), ScoreCAM(conv_model(), "layer")(INPUT, 1)
    )
    with pytest.raises(TargetError, match="none"):
        GradCAM(conv_model(output=lambda z: "text"), "layer")(INPUT)
    with pytest.raises(ShapeError, match=r"\(3, 5, 1\).*callable"):
        GradCAM(conv_model(output=lambda z: z[..., None]), "layer")(INPUT)


@pytest.mark.parametrize("name", each())
def test_one_value_per_sample_counts_as_one_class(name: str) -> None:
    column, layer = subject(name, classes=1)
    flat = build(lambda m, x: m.body(x)[:, 0], body=column)
    for targets in (None, 0, lambda z: -z.flatten()):
        expected = quick(name)(column, layer).explain(INPUT, targets)
        explanation = quick(name)(flat, f"body.{layer}").explain(INPUT, targets)
        assert torch.equal(explanation.heatmaps, expected.heatmaps)
        assert torch.equal(explanation.scores, expected.scores)


# Layers


def wrapped_layer(output: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> nn.Module:
    """A model whose layer `inner` returns something around its tensor."""
    run = lambda m, x: m.fc(read(m.inner(m.layer(x))).relu().mean((2, 3)))  # noqa: E731
    return build(run, layer=nn.Conv2d(3, 6, 3), inner=Apply(output), fc=nn.Linear(6, 5))


LAYER_OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda y: (y, y.mean((2, 3))), lambda out: out[0]),
    "list": (lambda y: [torch.zeros(2), y], lambda out: out[1]),
    "dict": (lambda y: {"x": y, "size": 3}, lambda out: out["x"]),
    "nested": (lambda y: ({"x": (y,)}, None), lambda out: out[0]["x"][0]),
    "ModelOutput": (lambda y: ImageClassifierOutput(logits=y), lambda out: out.logits),
}


@pytest.mark.parametrize("kind", LAYER_OUTPUTS)
def test_layer_that_returns_its_tensor_in_something(kind: str) -> None:
    model = wrapped_layer(*LAYER_OUTPUTS[kind])
    for target_layers in ("inner", ["layer", "inner"]):
        spy = Spy(model, target_layers)
        spy.explain(INPUT)
        plain = evidence(wrapped_layer(lambda y: y, lambda y: y), "layer", INPUT)
        assert torch.equal(spy.seen["inner"].activations, plain.activations)
        assert torch.equal(spy.seen["inner"].gradients, plain.gradients)


def test_layer_with_two_tensors_needs_reshape() -> None:
    model = wrapped_layer(lambda y: (y, 2 * y), lambda out: out[0] + out[1])
    with pytest.raises(CaptureError, match=r"'inner' returned a tuple of \[\(3, 6, 6, 6\), \(3, 6, 6, 6\)\].*reshape="):
        GradCAM(model, "inner")(INPUT)
    first, second = (evidence(model, "inner", INPUT, reshape=lambda out, i=i: out[i]) for i in (0, 1))
    assert torch.equal(2 * first.activations, second.activations)
    assert torch.equal(first.gradients, second.gradients)


@pytest.mark.parametrize(
    ("output", "named"), [(lambda y: None, "NoneType"), (lambda y: 7, "int"), (lambda y: "x", "str")]
)
def test_layer_that_returns_no_tensor_is_an_error_that_names_the_type(output: Any, named: str) -> None:
    kept = {}
    model = wrapped_layer(lambda y: (kept.update(y=y), output(y))[1], lambda out: kept["y"])
    with pytest.raises(CaptureError, match=f"'inner' returned a {named}"):
        GradCAM(model, "inner")(INPUT)


def test_layer_without_positions_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"'fc' returned shape \(3, 5\).*no positions"):
        GradCAM(tiny(), "fc")(INPUT)


def test_reshape_must_return_maps() -> None:
    for reshape, found in (
        (lambda y: y.mean((2, 3)), r"\(3, 6\)"),
        (lambda y: y[:2], r"\(2, 6, 4, 4\)"),
        (lambda y: y.transpose(0, 1), r"\(6, 3, 4, 4\)"),
        (lambda y: y > 0, r"\(3, 6, 4, 4\) of torch\.bool"),
        (len, "int"),
    ):
        with pytest.raises(ShapeError, match=f"reshape returned {found}"):
            GradCAM(tiny(), "relu2", reshape=reshape)(INPUT)
    flipped = evidence(tiny(), "relu2", INPUT, reshape=lambda y: y.flip(1))
    assert torch.equal(flipped.activations.flip(1), evidence(tiny(), "relu2", INPUT).activations)


def test_layer_that_runs_twice_is_an_error_with_the_count() -> None:
    twice = conv_model(behind=lambda y: y)
    shared = build(
        lambda m, x: m.fc(m.relu(m.layer(m.relu(m.first(x)))).mean((2, 3))),
        **dict(twice.named_children()),
        relu=nn.ReLU(),
    )
    for name in LAYERED:
        with pytest.raises(CaptureError, match="'relu' ran 2 times"):
            quick(name)(shared, "relu")(INPUT)
    assert GradCAM(shared).explain(INPUT).layers == ("relu#2",)


def test_layer_that_does_not_run_is_an_error() -> None:
    model = tiny()
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(CaptureError, match="'spare' did not run"):
        GradCAM(model, ["stage1", "spare"])(INPUT)


@pytest.mark.parametrize(
    "cut", [lambda y: y.detach(), torch.zeros_like, torch.no_grad()(lambda y: y * 2), lambda y: (y > 0).float()]
)
def test_score_that_does_not_depend_on_the_layer_is_an_error(cut: Any) -> None:
    model = conv_model(before=cut)
    with pytest.raises(CaptureError, match="does not depend on layer 'first'"):
        GradCAM(model, ["first", "layer"])(INPUT)
    with pytest.raises(CaptureError, match="does not depend on layer 'first'"):
        GradCAM(model, "first")(INPUT)
    assert torch.equal(GradCAM(model, "layer")(INPUT), GradCAM(model)(INPUT))


def test_activations_overwritten_through_another_name_are_an_error() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.layer(x)
        z = m.same(y)
        y.mul_(3)
        return m.fc(z.relu().mean((2, 3)))

    model = build(run, layer=nn.Conv2d(3, 6, 3), same=nn.Identity(), fc=nn.Linear(6, 5))
    for cam in (GradCAM(model, "same"), GradCAM(model, ["layer", "same"]), ScoreCAM(model, "same")):
        with pytest.raises(CaptureError, match="'same' was overwritten"):
            cam(INPUT)

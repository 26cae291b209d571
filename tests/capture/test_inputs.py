"""What a model can be called with, and what is refused: kinds of inputs, empty batches, numbers that are none."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from evidence import LAYERED, ON_CNNS, close, evidence, quick, subject
from models import TinyCNN, build, conv_model, images, seeded, tiny
from representatives import ON_CLASSES, crossed, each
from torch import Tensor, nn

from gradcam_kit import METHODS, GradCAM, ScoreCAM, explain_all
from gradcam_kit.capture import read_inputs
from gradcam_kit.capture.model import inputs as model_inputs
from gradcam_kit.errors import ClassIndexError, InputError, NonFiniteError, ShapeError
from gradcam_kit.targets import ClassLogit

INPUT = images(3, size=(8, 8))
NONE = torch.empty(0, 3, 8, 8)


def with_extras(
    m: nn.Module, x: Tensor, shift: Tensor, mask: Tensor | None = None, sign: int = 1, flag: str = ""
) -> Tensor:
    """A CNN with a vector per sample, a mask shared by the batch, and settings beside."""
    return sign * m.body(x * (1 if mask is None else mask)) + shift.sum(1, keepdim=True) * len(flag)


SHIFT, MASK = images(3, 2, (1,))[..., 0], torch.rand(8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", each())
def test_several_inputs_in_every_form_give_one_result(name: str) -> None:
    body, layer = subject(name)
    cam = quick(name)(build(with_extras, body=body), f"body.{layer}")
    calls: list[tuple[Any, dict[str, Any]]] = [
        ((INPUT, SHIFT, MASK, 1, "abc"), {}),
        ([INPUT, SHIFT], {"mask": MASK, "flag": "abc"}),
        ({"shift": SHIFT, "x": INPUT, "mask": MASK, "flag": "abc"}, {}),
        (INPUT, {"shift": SHIFT, "mask": MASK, "flag": "abc"}),
    ]
    target = ClassLogit(2)
    first, *others = (cam.explain(inputs, target, **options) for inputs, options in calls)
    for other in others:
        assert torch.equal(other.heatmaps, first.heatmaps)
        assert torch.equal(other.scores, first.scores)
    plain = quick(name)(build(lambda m, x: m.body(x * MASK), body=body), f"body.{layer}").explain(INPUT, target)
    assert close(first.scores, plain.scores + 3 * SHIFT.sum(1))


def test_rows_take_their_own_sample_s_extras() -> None:
    model = build(with_extras, body=TinyCNN())
    seen = evidence(model, "body.relu2", {"x": INPUT, "shift": SHIFT, "mask": MASK, "flag": "a"}, [0, 1, 2])
    index = torch.tensor([2, 0, 2, 1, 1])
    with torch.no_grad():
        expected = (model.body(INPUT[index] * MASK) + SHIFT[index].sum(1, keepdim=True))[torch.arange(5), index]
    assert close(seen.rescore(INPUT[index], index), expected)
    assert close(seen.replay(seen.activations[index], index), expected)
    cam = ScoreCAM(model, "body.relu2", batch_size=2)
    one_by_one = [cam((INPUT[i : i + 1], SHIFT[i : i + 1], MASK), flag="a") for i in range(3)]
    assert close(cam((INPUT, SHIFT, MASK), flag="a"), torch.cat(one_by_one))


def test_the_first_floating_tensor_with_positions_is_the_image() -> None:
    ids, vector, small = torch.arange(3), torch.ones(3, 4), images(3, 1, (4, 4))
    found = read_inputs((ids, vector, "text", small, INPUT, 5), {"late": INPUT})
    assert (found.slot, found.n, found.size) == (3, 3, (4, 4))
    assert read_inputs({"ids": ids, "pixels": INPUT}, {"more": small}).slot == "pixels"
    assert read_inputs(ids, {"pixels": INPUT}).slot == "pixels"
    changed = found.with_images(small[[1]], torch.tensor([1]))
    assert torch.equal(changed.args[0], ids[[1]])
    assert torch.equal(changed.args[4], INPUT[[1]])
    assert changed.args[2] == "text"


def test_images_made_under_inference_mode_can_enter_a_graph() -> None:
    with torch.inference_mode():
        made = INPUT * 2
    found = read_inputs((made, made), {"more": made})
    for tensor in (*found.args, found.kwargs["more"]):
        tensor.requires_grad_()
    assert torch.equal(found.images, made)
    assert read_inputs(INPUT.clone().requires_grad_(), {}).images.requires_grad is False


@pytest.mark.parametrize(("name", "axes"), crossed(ON_CNNS, [3, 1, 2]))
def test_signals_pictures_and_volumes(name: str, axes: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    model = build(
        lambda m, x: m.fc(m.relu(m.layer(x)).flatten(2).mean(2)),
        layer=conv(3, 6, 3, stride=2), relu=nn.ReLU(), fc=nn.Linear(6, 5),
    )  # fmt: skip
    size = (9, 7, 6)[:axes]
    x = images(2, 3, size)
    for layer in ("relu", None):
        explanation = quick(name)(model, layer).explain(x, torch.tensor([[0, 1], [2, 3]]))
        assert explanation.heatmaps.shape == (2, 2, *size)
        assert explanation.heatmaps.dtype == torch.float32
        if name == "grad-cam":
            assert explanation.saliency["relu"].shape == (2, 2, *((s - 1) // 2 for s in size))
    assert (explanation.heatmaps >= 0).all()
    assert (explanation.heatmaps <= 1).all()


BAD_IMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "integers": (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), InputError, r"images are uint8; expected floating.*/ 255"),
    "bools": (torch.zeros(1, 3, 8, 8, dtype=torch.bool), InputError, "images are bool"),
    "one picture": (torch.zeros(8, 8), ShapeError, r"shape \(8, 8\); expected \(n, c, \*positions\)"),
    "four axes": (torch.zeros(1, 2, 3, 4, 5, 6), ShapeError, r"\(1, 2, 3, 4, 5, 6\)"),
    "no tensor": ((1, "x"), ShapeError, r"images contain no tensor \(found: a str, an int\)"),
    "nothing": ((), ShapeError, r"images contain no tensor \(found: nothing\)"),
    "array": (INPUT.numpy(), InputError, "images is a ndarray"),
    "path": ("cat.jpg", InputError, "images is a str"),
    "None": (None, InputError, "images is a NoneType"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_images_of_the_wrong_kind_are_an_error(kind: str) -> None:
    bad, error, message = BAD_IMAGES[kind]
    with pytest.raises(error, match=message):
        inspect.unwrap(model_inputs.read_inputs)(bad, {})  # as in production, without the checks of types


# Empty batches


@pytest.mark.parametrize("layer", ["relu2", None])
@pytest.mark.parametrize("name", each())
def test_an_empty_batch_gives_an_empty_result(name: str, layer: str | None) -> None:
    cam = quick(name)(subject(name)[0], layer and subject(name)[1])
    for targets, shape in (
        (None, (0, 8, 8)),
        (3, (0, 8, 8)),
        ([], (0, 8, 8)),
        (torch.zeros(0, 2).long(), (0, 2, 8, 8)),
    ):
        explanation = cam.explain(NONE, targets)
        assert explanation.heatmaps.shape == shape
        assert explanation.heatmaps.dtype == torch.float32
        assert (
            explanation.is_empty.shape
            == explanation.scores.shape
            == explanation.targets.shape
            == shape[: len(shape) - 2]
        )
    assert cam.explain(NONE, lambda z: z[:, 0]).targets is None
    assert cam(NONE.half()).dtype == torch.float32


def test_an_empty_batch_still_checks_the_number_of_targets() -> None:
    with pytest.raises(ShapeError, match="2 targets for 0 images"):
        GradCAM(tiny(), "relu2")(NONE, [0, 1])
    assert [maps.shape for maps in explain_all([GradCAM(tiny()), ScoreCAM(tiny())], NONE)] == [(0, 8, 8)] * 2


@pytest.mark.parametrize("name", ON_CNNS)
def test_images_of_zeros_and_constants_give_finite_maps(name: str) -> None:
    model = tiny()
    for layer in ("relu2", None):
        for value in (0.0, 1.0, -1e-30):
            heatmaps = quick(name)(model, layer)(torch.full((2, 3, 8, 8), value))
            assert heatmaps.isfinite().all()
            assert close(heatmaps[0], heatmaps[1])
    with torch.no_grad():
        model.stage2.bias.fill_(-100)  # nothing survives the ReLU
    explanation = quick(name)(model, "relu2").explain(INPUT)
    if name in LAYERED:
        assert explanation.is_empty.all()
        assert (explanation.heatmaps == 0).all()
    assert explanation.heatmaps.isfinite().all()


# NaN and infinity


@pytest.mark.parametrize(("name", "value"), crossed(ON_CLASSES, [float("nan"), float("inf"), -float("inf")]))
def test_images_that_are_not_finite_are_an_error_with_the_sample(name: str, value: float) -> None:
    bad = INPUT.clone()
    bad[1, 2, 3, 4] = value
    copy = bad.clone()
    with pytest.raises(NonFiniteError, match=r"^image 1 of the batch has NaN or infinite values"):
        quick(name)(*subject(name))(bad)
    assert torch.equal(bad, copy) or torch.equal(bad.isnan(), copy.isnan())


@pytest.mark.parametrize(("name", "value"), crossed(LAYERED, [float("nan"), float("inf")]))
def test_activations_that_are_not_finite_are_an_error_with_layer_and_sample(name: str, value: float) -> None:
    def spoil(y: Tensor) -> Tensor:
        y = y.clone()
        y[2, 1, 0, 0] = value
        return y

    model = conv_model(before=spoil)
    layer = "first" if name in ("cam", "einsum-cam") else "layer"
    model.first.register_forward_hook(lambda module, args, output: spoil(output))
    with pytest.raises(NonFiniteError, match=r"activations of layer '(first|layer)'.* image 2 of the batch"):
        quick(name)(model, layer)(INPUT, 0)


def test_gradients_that_overflow_are_an_error_with_layer_and_sample() -> None:
    model = conv_model(
        behind=lambda y: (
            (y * torch.tensor([0.0, 1, 1]).view(3, 1, 1, 1)).square().sum(1, keepdim=True).sqrt().expand_as(y)
        )
    )
    with pytest.raises(NonFiniteError, match=r"gradients at layer 'layer'.* image 0 of the batch"):
        GradCAM(model, "layer")(INPUT)


def test_large_finite_numbers_are_no_error_and_hide_none() -> None:
    # The check sums each sample in float32, and their sum overflows.
    large = torch.full((3, 3, 8, 8), 3e38)
    model = build(
        lambda m, x: m.fc((m.layer(x) * 1e-38).relu().mean((2, 3))), layer=nn.AvgPool2d(1), fc=nn.Linear(3, 2)
    )
    assert GradCAM(model, "layer")(large).isfinite().all()
    large[2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^image 2 of the batch has NaN or infinite values"):
        GradCAM(model, "layer")(large)


def test_error_of_a_class_names_value_and_number_of_classes() -> None:
    for wrong in (5, -1, [0, 5, 1], torch.tensor([[0, 1], [2, 3], [4, 7]])):
        with pytest.raises(
            ClassIndexError, match=r"class (5|-1|7) for a model with 5 output\(s\); classes go from 0 to 4"
        ):
            GradCAM(seeded(TinyCNN()), "relu2")(INPUT, wrong)


def test_an_input_that_only_seems_to_belong_to_the_samples_belongs_to_the_batch():
    torch.manual_seed(0)
    model = build(lambda m, x, w: m.conv(x).relu().mean((2, 3)) @ w.T, conv=nn.Conv2d(3, 4, 3))
    prompts, pictures = torch.randn(2, 4), images(3)
    for name in ("score-cam", "ablation-cam", "smooth-grad-cam++"):
        cam = METHODS[name](model, "conv")
        assert cam(pictures, 0, w=prompts).shape == (3, 16, 16)
        alone = torch.cat([cam(picture[None], 0, w=prompts) for picture in pictures[:2]])
        torch.testing.assert_close(cam(pictures[:2], 0, w=prompts), alone, rtol=1e-4, atol=1e-4)
    assert GradCAM(model, "conv")(pictures[:2], 0, w=prompts).any()


def test_lists_with_an_entry_per_sample_are_fine_with_an_automatic_layer():
    def forward(m, x, names):
        assert len(names) == len(x)
        return m.fc(m.conv(x).relu().mean((2, 3)))

    model = build(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    assert GradCAM(model)(images(2), names=["a", "b"]).shape == (2, 16, 16)


@pytest.mark.parametrize("keyword", ["label", "normalize", "x"])
def test_keywords_that_a_model_may_mean_are_handed_to_it(keyword):
    seen = {}

    def forward(m, images, **rest):
        seen.update(rest)
        return m.fc(m.conv(images).relu().mean((2, 3)))

    model = build(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    GradCAM(model, "conv")(images(2), **{keyword: 3})
    assert seen == {keyword: 3}
    with pytest.raises(InputError, match="targets="):
        GradCAM(model, "conv")(images(2), target=3)

"""Passes after the first use convolutions' weights in the order of their kernels; the parameters stay what they are."""

from contextlib import nullcontext

import pytest
import torch
from test_memory_format import Net, make, needs_onednn
from torch import nn

from gradcam_kit import METHODS, GradCAM, ScoreCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.capture.model import memory_format
from gradcam_kit.meter import Meter


@pytest.fixture(autouse=True)
def _small_pictures_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_format, "_SMALLEST", 64)


def watch_copies(conv: nn.Conv2d) -> list[bool]:
    """Notes in each pass whether the convolution runs with a copy of its weight, which is its own in any case."""
    own, seen = conv.weight, []

    def note(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        assert module.weight is own
        seen.append("_conv_forward" in vars(module))

    conv.register_forward_pre_hook(note)
    return seen


@needs_onednn
@pytest.mark.parametrize("name", ["score-cam", "sess", "smooth-grad-cam++"])
def test_many_passes_run_with_packed_weights(name: str) -> None:
    model, images = make()
    conv = model.features[0]
    weight, version, strides = conv.weight, conv.weight._version, conv.weight.stride()
    seen = watch_copies(conv)
    METHODS[name](model, "features", batch_size=2)(images)
    assert seen[:2] == [False, False]  # a second pass may be the last one, so a copy would not pay
    assert len(seen) > 2
    assert all(seen[2:])
    assert "_conv_forward" not in vars(conv)
    assert conv.weight is weight
    assert (weight._version, weight.stride(), weight.requires_grad) == (version, strides, True)


def test_a_pass_or_two_pack_no_weights() -> None:
    model, images = make()
    seen = watch_copies(model.features[0])
    GradCAM(model, "features")(images)
    ScoreCAM(model, "features")(images)
    assert seen == [False, False, False]


@needs_onednn
def test_convolutions_are_themselves_again_after_an_error() -> None:
    model, images = make()
    conv, again = model.features[0], []

    def fail(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if "_conv_forward" in vars(module):
            again.append(1)
            raise KeyboardInterrupt

    conv.register_forward_pre_hook(fail)
    with rescoring(model, images, batch_size=1) as rescore, pytest.raises(KeyboardInterrupt):
        rescore(images, torch.arange(2))
    assert again == [1]
    assert "_conv_forward" not in vars(conv)


@needs_onednn
def test_where_packing_fails_passes_go_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make()
    seen, tried = watch_copies(model.features[0]), []

    def fail(*args: object) -> None:
        tried.append(1)
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(memory_format.PackedWeights, "_copy", fail)
    with rescoring(model, images, batch_size=1) as rescore:
        found = rescore(images.repeat(2, 1, 1, 1), torch.arange(4) % 2)
    assert (tried, seen) == ([1], [False, False, True, False, False])  # no pass is repeated
    with torch.no_grad():
        torch.testing.assert_close(found[:2], model(images).softmax(1).amax(1), atol=1e-5, rtol=1e-5)


@needs_onednn
def test_weights_that_change_between_passes_count() -> None:
    model, images = make()
    other = Net()
    with rescoring(model, images, [0, 1], batch_size=1) as rescore:
        rescore(images, torch.arange(2))
        with torch.no_grad():
            model.features[0].weight.mul_(-2)
        changed = rescore(images, torch.arange(2))
        torch.testing.assert_close(changed, model(images).softmax(1)[[0, 1], [0, 1]], atol=1e-5, rtol=1e-5)
        model.load_state_dict(other.state_dict())
        rescore(images, torch.arange(2))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


class Flat(nn.Conv2d):
    """A convolution of the user's own."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(maps, self.weight.view(-1).view(self.weight.shape), self.bias)


def convolution(kind: str) -> nn.Conv2d:
    if kind == "a subclass":
        return Flat(8, 6, 3)
    if kind == "a weight of its own making":
        return nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3))
    options: dict[str, dict[str, object]] = {
        "plain": {},
        "strided": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        "in groups": {"groups": 2, "bias": False},
        "one per channel": {"groups": 8, "padding": 1},
        "pointwise": {"kernel_size": 1},
        "padded alike": {"padding": "same"},
        "reflecting": {"padding": 1, "padding_mode": "reflect"},
    }
    channels = 8 if kind == "one per channel" else 6
    return nn.Conv2d(8, channels, **{"kernel_size": 3, **options[kind]})  # type: ignore[arg-type]


KINDS = (
    *("plain", "strided", "in groups", "one per channel", "pointwise", "padded alike", "reflecting"),
    *("a subclass", "a weight of its own making"),
)


@needs_onednn
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "float64", "autocast"])
def test_packed_convolutions_give_what_others_give(kind: str, precision: str) -> None:
    torch.manual_seed(0)
    conv = convolution(kind).requires_grad_(False)
    maps = torch.randn(3, 8, 9, 10).contiguous(memory_format=torch.channels_last)
    if precision == "float64":
        conv, maps = conv.double(), maps.double()
    packed = memory_format.PackedWeights()
    tolerance = {"float32": 1e-5, "float64": 1e-12, "autocast": 1e-2}[precision]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        expected = conv(maps)
        with packed.standing_in(conv):
            for _ in range(2):  # made and used again
                found = conv(maps)
                assert found.dtype == expected.dtype
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
            assert conv(maps[:0]).shape == (0, *expected.shape[1:])
            torch.testing.assert_close(conv(maps[1]), expected[1], atol=tolerance, rtol=tolerance)  # without a batch
    plain = not kind.startswith("a ")
    assert len(packed.packed) == plain
    has_kernels = {"float32": True, "float64": False, "autocast": torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    in_blocks = kind not in ("padded alike", "reflecting") and has_kernels[precision]
    assert all(copy.is_mkldnn == in_blocks for *_, copy in packed.packed.values())


@needs_onednn
def test_packed_convolutions_hand_gradients_on() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
    maps = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    [expected] = torch.autograd.grad(conv(maps).square().sum(), maps)
    with memory_format.PackedWeights().standing_in(conv):
        [found] = torch.autograd.grad(conv(maps).square().sum(), maps)
    torch.testing.assert_close(found, expected)


@needs_onednn
def test_what_would_be_refused_is_refused_with_packed_weights_too() -> None:
    conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
    maps = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with memory_format.PackedWeights().standing_in(conv):
        for wrong in (maps.double(), maps[:, :2].contiguous(memory_format=torch.channels_last)):
            with pytest.raises(RuntimeError):
                conv(wrong)


@needs_onednn
def test_weights_whose_memory_is_exchanged_count() -> None:
    conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
    maps = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    packed = memory_format.PackedWeights()
    with packed.standing_in(conv):
        conv(maps)
    conv.weight.data = torch.randn_like(conv.weight)
    with packed.standing_in(conv):
        torch.testing.assert_close(conv(maps), nn.Conv2d._conv_forward(conv, maps, conv.weight, conv.bias))


@needs_onednn
@pytest.mark.parametrize("kind", ["plain", "strided", "in groups", "one per channel"])
def test_a_meter_counts_packed_convolutions_as_others(kind: str) -> None:
    conv = convolution(kind).requires_grad_(False)
    maps = torch.randn(3, 8, 9, 10).contiguous(memory_format=torch.channels_last)
    costs = []
    for packs in (nullcontext(), memory_format.PackedWeights().standing_in(conv)):
        with torch.no_grad(), packs, Meter(torch.device("cpu")) as meter:
            conv(maps)
        costs.append(meter.lap().flops)
    assert costs[0] == costs[1] > 0

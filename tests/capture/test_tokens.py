"""Layouts of layer outputs: exact grids of tokens or an error, and the way back from maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evidence import evidence
from models import Apply, TinyViT, build, images, seeded, tiny
from torch import Tensor, nn

from gradcam_kit import GradCAM
from gradcam_kit.capture.layouts import ChannelsFirst, ChannelsLast, Custom, Tokens, infer_layout, prefix_tokens
from gradcam_kit.errors import CaptureError, ShapeError

SQUARE = (224, 224)


def declaring(prefix: int | None) -> nn.Module:
    model = nn.Module()
    if prefix is not None:
        model.num_prefix_tokens = prefix
    return model


def layout(tokens: int, size: tuple[int, ...], prefix: int | None = None) -> Any:
    return infer_layout((2, tokens, 8), size, declaring(prefix), "blocks.3")


EXACT = [
    (196, SQUARE, 0, (14, 14)),
    (197, SQUARE, 1, (14, 14)),
    (198, SQUARE, 2, (14, 14)),
    (201, SQUARE, 5, (14, 14)),
    (50, SQUARE, 1, (7, 7)),
    (257, SQUARE, 1, (16, 16)),
    (261, (256, 256), 5, (16, 16)),
    (261, SQUARE, 5, (16, 16)),
    (577, (384, 384), 1, (24, 24)),
    (1370, (518, 518), 1, (37, 37)),
    (1374, (518, 518), 5, (37, 37)),
    (281, (224, 320), 1, (14, 20)),
    (281, (320, 224), 1, (20, 14)),
    (285, (224, 320), 5, (14, 20)),
    (1 + 8 * 24, (128, 384), 1, (8, 24)),
    (17, (64, 64), 1, (4, 4)),
]


@pytest.mark.parametrize(("tokens", "size", "prefix", "grid"), EXACT)
def test_token_counts_have_exact_grids(tokens: int, size: tuple[int, ...], prefix: int, grid: tuple[int, ...]) -> None:
    assert layout(tokens, size, prefix) == Tokens(grid, prefix)
    assert layout(tokens, size) == Tokens(grid, prefix)  # also where the model declares nothing


@pytest.mark.parametrize(("tokens", "size", "prefix"), [case[:3] for case in EXACT[1:]])
def test_wrongly_declared_prefix_is_an_error_that_lists_it(tokens: int, size: tuple[int, ...], prefix: int) -> None:
    with pytest.raises(ShapeError, match=rf"'blocks.3' has {tokens} tokens.*declares: {prefix + 1}.*reshape="):
        layout(tokens, size, prefix + 1)


def test_a_layer_without_the_declared_prefix_still_fits() -> None:
    assert layout(196, SQUARE, 1) == Tokens((14, 14), 0)
    assert layout(16, (64, 64), 5) == Tokens((4, 4), 0)


@pytest.mark.parametrize(
    ("tokens", "size", "options"),
    [
        (10, (96, 96), "3x3 [+] 1 prefix; 2x2 [+] 6 prefix"),
        (1568, (16, 224, 224), "2x28x28 [+] 0 prefix; 8x14x14 [+] 0 prefix"),
        (1569, (16, 224, 224), "2x28x28 [+] 1 prefix; 8x14x14 [+] 1 prefix"),
    ],
)
def test_several_grids_are_an_error_that_lists_them(tokens: int, size: tuple[int, ...], options: str) -> None:
    with pytest.raises(ShapeError, match=rf"fit several grids.*possible: {options}.*reshape="):
        layout(tokens, size)


@pytest.mark.parametrize(
    ("tokens", "size"), [(6 * 229, (518, 300)), (131, SQUARE), (9 * 29 + 2, (256, 256)), (1, SQUARE)]
)
def test_no_grid_is_an_error_and_never_a_vector(tokens: int, size: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=f"{tokens} tokens, which fit no grid of an input of {size[0]}x{size[1]}"):
        layout(tokens, size, 1)


CONVOLUTIONS = [
    ((2, 96, 7, 7), SQUARE),
    ((2, 7, 7, 7), SQUARE),
    ((2, 64, 14, 10), (224, 160)),
    ((2, 3, 224, 224), SQUARE),
    ((2, 16, 16, 16), (16, 16)),
    ((2, 6, 1, 1), (16, 16)),
    ((2, 8, 100), (100,)),
    ((2, 8, 50), (100,)),
    ((2, 512, 3), (16,)),
    ((2, 8, 4, 8, 8), (16, 32, 32)),
    ((2, 32, 18, 18), (16, 16)),
]
LAST = [
    ((2, 7, 7, 96), SQUARE),
    ((2, 56, 56, 96), SQUARE),
    ((2, 14, 10, 64), (224, 160)),
    ((2, 224, 224, 3), SQUARE),
    ((2, 16, 16, 8), (16, 16)),
    ((2, 100, 8), (100,)),
    ((2, 4, 8, 8, 32), (16, 32, 32)),
]


@pytest.mark.parametrize(("shape", "size"), CONVOLUTIONS)
def test_channels_first_is_the_rule(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert infer_layout(shape, size, nn.Module(), "layer") == ChannelsFirst()


@pytest.mark.parametrize(("shape", "size"), LAST)
def test_channels_last_where_the_other_way_does_not_fit(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert infer_layout(shape, size, nn.Module(), "layer") == ChannelsLast()


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 5), SQUARE), ((2,), SQUARE), ((2, 3, 4, 5, 6), SQUARE), ((2, 8, 4, 4), (16,) * 3)]
)
def test_outputs_without_positions_are_an_error(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"returned shape .*no positions for images with \d position axes.*reshape="):
        infer_layout(shape, size, nn.Module(), "layer")


# What a model declares


def test_prefix_tokens_come_from_the_model() -> None:
    assert prefix_tokens(nn.Linear(2, 2)) is None
    assert prefix_tokens(nn.Sequential(nn.Linear(2, 2), declaring(3))) == 3
    for prefix in (1, 2, 5):
        assert prefix_tokens(TinyViT(prefix=prefix)) == prefix
    assert prefix_tokens(TinyViT(prefix=0)) is None
    for names, count in ((("class_token",), 1), (("class_embedding",), 1), (("cls_token", "distillation_token"), 2)):
        model = nn.Module()
        for name in names:
            model.register_parameter(name, nn.Parameter(torch.zeros(1, 1, 4)))
        assert prefix_tokens(nn.Sequential(model)) == count
    model.register_parameter("register_tokens", nn.Parameter(torch.zeros(1, 4, 4)))
    assert prefix_tokens(model) == 6


# There and back


def numbered(*shape: int) -> Tensor:
    return torch.arange(2.0 * torch.Size(shape).numel()).view(2, *shape)


LAYOUTS: dict[str, tuple[Any, Tensor, tuple[int, ...]]] = {
    "channels first": (ChannelsFirst(), numbered(4, 3, 2), (2, 4, 3, 2)),
    "channels first, signal": (ChannelsFirst(), numbered(4, 3), (2, 4, 3)),
    "channels last": (ChannelsLast(), numbered(3, 2, 4), (2, 4, 3, 2)),
    "channels last, volume": (ChannelsLast(), numbered(3, 2, 5, 4), (2, 4, 3, 2, 5)),
    "tokens": (Tokens((3, 2), 0), numbered(6, 4), (2, 4, 3, 2)),
    "tokens behind a prefix": (Tokens((3, 2), 5), numbered(11, 4), (2, 4, 3, 2)),
    "tokens of a volume": (Tokens((3, 2, 2), 1), numbered(13, 4), (2, 4, 3, 2, 2)),
    "custom rearrangement": (
        Custom(lambda out: out[:, 1:].transpose(1, 2).unflatten(2, (2, 3)).flip(1)), numbered(7, 4), (2, 4, 2, 3)),
    "custom selection": (Custom(lambda out: out[:, 1:3, ::2]), numbered(4, 6, 3), (2, 2, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_to_native_is_the_inverse_of_to_maps(kind: str) -> None:
    way, output, shape = LAYOUTS[kind]
    maps = way.to_maps(output)
    assert maps.shape == shape
    assert torch.equal(way.to_native(maps, output), output)
    changed = way.to_native(-maps - 1, output)
    assert torch.equal(way.to_maps(changed), -maps - 1)
    untouched = changed == output
    assert untouched.sum() == output.numel() - maps.numel()  # what maps leave out is taken from the output


@pytest.mark.parametrize("kind", LAYOUTS)
def test_to_native_takes_rows_of_other_samples(kind: str) -> None:
    way, output, _ = LAYOUTS[kind]
    index = torch.tensor([1, 1, 0])
    assert torch.equal(way.to_native(way.to_maps(output)[index], output[index]), output[index])


def test_tokens_are_laid_out_row_by_row() -> None:
    maps = Tokens((2, 3), 1).to_maps(numbered(7, 1))
    assert maps[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


# In a model


def test_token_maps_equal_the_reshaped_tokens_and_their_gradients() -> None:
    model, x = seeded(TinyViT(prefix=2)), images(3)
    inferred = evidence(model, "blocks.1.norm1", x)
    by_hand = evidence(model, "blocks.1.norm1", x, reshape=lambda t: t[:, 2:].transpose(1, 2).reshape(3, -1, 4, 4))
    assert inferred.activations.shape == (3, 8, 4, 4)
    assert torch.equal(inferred.activations, by_hand.activations)
    assert torch.equal(inferred.gradients, by_hand.gradients)
    with torch.no_grad():
        native = model.blocks[1].norm1(model.blocks[0](model.tokens(x)))
    assert torch.equal(inferred.activations[:, 3, 1, 2], native[:, 2 + 1 * 4 + 2, 3])


@pytest.mark.parametrize("layer", ["blocks.1.norm1", "norm", "patch"])
def test_replay_of_token_layers_keeps_the_prefix_tokens(layer: str) -> None:
    model, x = seeded(TinyViT(pool="token" if layer != "norm" else "mean")), images(3)
    seen = evidence(model, layer, x, [0, 1, 2])
    index = torch.tensor([2, 0, 1, 1])
    assert torch.allclose(seen.replay(seen.activations[index], index), seen.scores[index], atol=1e-6)
    assert not torch.allclose(seen.replay(0 * seen.activations, torch.arange(3)), seen.scores, atol=1e-2)


def test_explicit_layer_behind_the_last_attention_says_that_nothing_reaches_the_patches() -> None:
    model = seeded(TinyViT())
    for layer in ("norm", "blocks.1", "blocks"):
        with pytest.raises(
            CaptureError, match=f"no gradient reaches the patch tokens of layer '{layer}'.*only on the class token"
        ):
            GradCAM(model, layer)(images(3))
    assert GradCAM(seeded(TinyViT(pool="mean")), "norm")(images(3)).max() == 1


def test_head_of_zeros_gives_empty_maps_and_no_wrong_reason() -> None:
    model = seeded(TinyViT())
    nn.init.zeros_(model.head.weight)
    assert GradCAM(model, "blocks.1.norm1").explain(images(3)).is_empty.all()


def test_window_transformers_and_signals_of_tokens() -> None:
    last = build(lambda m, x: m.fc(m.layer(m.conv(x)).mean((1, 2))), conv=nn.Conv2d(3, 8, 4, stride=4),
                 layer=Apply(lambda y: y.movedim(1, -1)), fc=nn.Linear(8, 5))  # fmt: skip
    seen = evidence(last, ["layer"], images(2))
    assert torch.equal(seen.activations, evidence(last, "conv", images(2)).activations)
    recurrent = build(
        lambda m, x: m.fc(m.layer(x.transpose(1, 2))[0][:, -1]),
        layer=nn.GRU(3, 6, batch_first=True),
        fc=nn.Linear(6, 5),
    )
    seen = evidence(recurrent, "layer", images(2, 3, (20,)))
    by_hand = evidence(recurrent, "layer", images(2, 3, (20,)), reshape=lambda out: out[0].transpose(1, 2))
    assert seen.activations.shape == (2, 6, 20)
    assert torch.equal(seen.activations, by_hand.activations)
    assert torch.equal(seen.gradients, by_hand.gradients)


def test_layout_is_that_of_the_input_s_size() -> None:
    wide = seeded(TinyViT(tokens=4 * 6))
    assert evidence(wide, "blocks.1.norm1", images(2, size=(16, 24))).activations.shape == (2, 8, 4, 6)
    with pytest.raises(ShapeError, match="no positions"):
        GradCAM(tiny(), "fc")(images(2))

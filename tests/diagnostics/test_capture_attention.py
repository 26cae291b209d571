"""Attention of every library's transformers against the explicit computation; a watched pass equals a plain one."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from traces import unchanged
from transformer_models import (
    KINDS,
    hugging_face,
    hugging_face_clip,
    plain_vit,
    timm_swin,
    timm_vit,
    torchvision_swin,
    torchvision_vit,
)

from gradcam_kit.diagnostics import capture_attention
from gradcam_kit.errors import (
    CaptureError,
    InputError,
    LayerNotFoundError,
    MemoryLimitError,
    OptionError,
    UnknownNameError,
)

IMAGES = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Captured attention and output."""
    with torch.no_grad(), capture_attention(model) as attention:
        output = model(*args, **kwargs)
    return attention, output


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_computing_attention_shows_the_same(kind: str) -> None:
    model, explicit = plain_vit(kind), plain_vit("explicit")
    attention, output = run(model, IMAGES)
    with torch.no_grad():
        assert torch.equal(output, model(IMAGES))
        explicit(IMAGES)
    assert list(attention) == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]
    for block, own in zip(explicit.blocks, attention.values(), strict=True):
        torch.testing.assert_close(own.probabilities, block.attn.seen["p"], rtol=0, atol=1e-12)
    if kind == "explicit":
        norm = explicit.blocks[0].attn.seen["output"].flatten(2).norm(dim=-1)
        torch.testing.assert_close(attention["blocks.0.attn"].calls[0].output_norm, norm)


VISION = {
    "torchvision": (torchvision_vit, 32, 3, (2, 2, 17, 17)),
    "torchvision windows": (torchvision_swin, 32, 4, (32, 2, 16, 16)),
    "timm": (timm_vit, 64, 3, (2, 2, 17, 17)),
    "timm windows": (timm_swin, 64, 4, (32, 2, 16, 16)),
    "hugging face": (lambda: hugging_face("ViT"), 32, 3, (2, 2, 17, 17)),
    "hugging face eager": (lambda: hugging_face("ViT", "eager"), 32, 3, (2, 2, 17, 17)),
}


@pytest.mark.parametrize("name", VISION)
def test_libraries(name: str) -> None:
    make, size, count, shape = VISION[name]
    model, images = make(), torch.rand(2, 3, size, size)
    with unchanged(model, images):
        attention, _ = run(model, images)
    assert len(attention) == count
    assert next(iter(attention.values())).shape == shape
    for layer in attention.values():
        torch.testing.assert_close(layer.probabilities.sum(-1), torch.ones(layer.shape[:3]))
    is_whole = "windows" not in name
    assert (attention.grids[next(iter(attention))] is not None) is is_whole  # a window is not the picture


def test_hugging_face_fused_equals_eager() -> None:
    fused, eager = (run(hugging_face("ViT", kind), torch.ones(1, 3, 32, 32))[0] for kind in ("sdpa", "eager"))
    for a, b in zip(fused.values(), eager.values(), strict=True):
        torch.testing.assert_close(a.probabilities, b.probabilities)


def test_clip_of_hugging_face_and_open_clip() -> None:
    words = torch.randint(3, 50, (2, 9))
    attention, _ = run(hugging_face_clip(), input_ids=words, pixel_values=torch.rand(2, 3, 32, 32))
    texts = [own for name, own in attention.items() if name.startswith("text")]
    assert [own.shape for own in texts] == [(2, 2, 9, 9)] * 3
    assert (texts[0].probabilities.triu(1) == 0).all()  # causal
    assert attention.grids[texts[0].name] is None  # nine words are not a 3 x 3 picture
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8}
    model = open_clip.model.CLIP(
        8, vision, {"context_length": 9, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
    )
    attention, _ = run(model.eval(), torch.rand(2, 3, 32, 32), words)
    assert [own.shape for own in attention.values()] == [(2, 2, 17, 17)] * 2 + [(2, 2, 9, 9)] * 2
    assert attention["visual.transformer.resblocks.0"] is attention["visual.transformer.resblocks.0.attn"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_fast_path_of_an_encoder_is_left_and_said(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64) if batch_first else torch.randn(5, 3, 8, dtype=torch.float64)
    attention, output = run(encoder, x)
    assert "fast path" in attention.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(output, encoder(x))
        _, expected = encoder.layers[0].self_attn(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(attention["layers.0.self_attn"].probabilities, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention_alone_with_masks_and_without_a_batch(weights: bool) -> None:
    module = nn.MultiheadAttention(8, 2, dtype=torch.float64)
    query, key = torch.randn(4, 3, 8, dtype=torch.float64), torch.randn(6, 3, 8, dtype=torch.float64)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[1, 4:] = True
    with capture_attention(module) as attention:
        module(query, key, key, key_padding_mask=mask, need_weights=weights)
        module(query[:, 0], key[:, 0], key[:, 0], need_weights=weights)
    first, second = attention["MultiheadAttention"].calls
    _, expected = module(query, key, key, key_padding_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(first.probabilities, expected.detach(), rtol=0, atol=1e-12)
    assert (first.probabilities[1, ..., 4:] == 0).all()
    assert second.probabilities.shape == (1, 2, 4, 6)
    assert attention.entropy["MultiheadAttention"].shape == (1, 2)


class Trained(nn.Module):
    """Fused attention with dropout, behind a checkpoint."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.qkv, self.head, self.reentrant = nn.Linear(8, 24), nn.Linear(8, 3), reentrant

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return (
            functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=True).transpose(1, 2).flatten(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.mix, x, use_reentrant=self.reentrant).mean(1))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_watched_training_step_is_the_same_step(reentrant: bool) -> None:
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model, x = Trained(reentrant), torch.randn(4, 5, 8, requires_grad=True)
        if watched:
            with capture_attention(model) as attention:
                model(x).square().sum().backward()
            assert len(attention["Trained"].calls) == 1  # the recomputation is not another call
            assert attention["Trained"].probabilities[0, 0, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]  # without dropout
        else:
            model(x).square().sum().backward()
        found.append([x.grad, *(own.grad for own in model.parameters()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_einsum_and_grouped_queries() -> None:
    class Einsum(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)

    class Grouped(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=1.0)

    q, k = torch.randn(2, 4, 3, 5), torch.randn(2, 2, 6, 5)
    grouped = run(Grouped(), q, k, k)[0]["Grouped"].probabilities
    full = k.repeat_interleave(2, 1)
    torch.testing.assert_close(grouped, (q @ full.mT).softmax(-1))
    torch.testing.assert_close(run(Einsum(), q, full, full)[0]["Einsum"].probabilities, grouped)


def test_half_precision_and_limits() -> None:
    model, x = nn.MultiheadAttention(8, 2, batch_first=True).bfloat16(), torch.randn(2, 5, 8, dtype=torch.bfloat16)
    attention, _ = run(model, x, x, x)
    assert attention["MultiheadAttention"].probabilities.dtype == torch.float32
    model, x = model.double(), x.double()
    with (
        pytest.raises(MemoryLimitError, match=r"attention of 'MultiheadAttention' \(2, 2, 5, 5\)"),
        unchanged(model, x),
        capture_attention(model, max_bytes=100),
    ):
        model(x, x, x)


def test_what_is_kept_is_chosen() -> None:
    model = plain_vit()
    with capture_attention(model, layers="blocks.1*", keep="cpu") as attention:
        model(IMAGES)
    assert list(attention) == ["blocks.1.attn"]
    with pytest.raises(LayerNotFoundError, match="did you mean"), capture_attention(model, layers="block.1"):
        model(IMAGES)
    with (
        pytest.raises(CaptureError, match="no attention in head"),
        capture_attention(model, layers="head"),
    ):
        model(IMAGES)
    with pytest.raises(UnknownNameError, match="contains several attention layers"):
        run(model, IMAGES)[0]["blocks"]
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks.1.attn'"):
        attention["blocks.1.atn"]


def test_no_attention_says_what_was_looked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(-1))
    with (
        pytest.raises(
            CaptureError,
            match=r"^no attention found in Sequential: looked .* \(1, 4, 6, 6\) that no matrix product[^\n]*$",
        ),
        unchanged(model),
        capture_attention(model),
    ):
        model(torch.ones(1, 3, 8, 8))
    with pytest.raises(CaptureError, match="did not run inside the block"), capture_attention(model):
        pass
    with pytest.raises(ZeroDivisionError), unchanged(model), capture_attention(model):  # the user's own error comes out
        model(torch.ones(1, 3, 8, 8)), 1 / 0


def test_wrong_arguments_are_one_line() -> None:
    model = plain_vit()
    for tokens in ("a text", torch.ones(3), [["a"], 3], [3, 4]):
        with pytest.raises(InputError, match="tokens"), capture_attention(model, tokens):
            model(IMAGES)
    with pytest.raises(OptionError, match="keep"), capture_attention(model, keep="stats"):
        model(IMAGES)
    with pytest.raises(InputError, match="expected a torch"), capture_attention(lambda x: x):
        pass


def test_nothing_is_held_afterwards() -> None:
    model = plain_vit("sdpa")
    attention, _ = run(model, IMAGES)
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
    assert not any(own.probabilities.requires_grad for own in attention.values())

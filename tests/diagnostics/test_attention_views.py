"""Heads in numbers and findings, rollout, maps, words and the page; planted heads and their healthy twins."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformer_models import plain_vit, timm_swin, timm_vit

from gradcam_kit.diagnostics import capture_attention
from gradcam_kit.diagnostics.captured_attention import CapturedAttention
from gradcam_kit.errors import CaptureError, OptionError, ShapeError

WORDS = ["[CLS]", "the", "cat", "sat", "on", "the", "<b>mat</b>", "[SEP]"]


class Encoder(nn.Module):
    """One attention over 8 tokens, each of them a one-hot vector."""

    def __init__(self, heads: int = 4, scale: float = 4.0) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, heads, batch_first=True)
        with torch.no_grad():
            self.attn.in_proj_weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


def seeded(**options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(**options)


def watched(model: nn.Module, tokens: Any = None, n: int = 6) -> CapturedAttention:
    x = torch.randn(n, 8, 16, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 4.0  # the class token is the same for all samples
    with torch.no_grad(), capture_attention(model, tokens) as attention:
        model(x)
    return attention


def copy_head(model: Encoder, source: int, to: int) -> None:
    """Give one head the queries and keys of another."""
    d = 16 // model.attn.num_heads
    with torch.no_grad():
        for part in (0, 16):
            for own in (model.attn.in_proj_weight, model.attn.in_proj_bias):
                own[part + d * to : part + d * (to + 1)] = own[part + d * source : part + d * (source + 1)]


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_two_identical_heads(scale: float) -> None:
    model = seeded(scale=scale)
    assert watched(model).findings == ()
    copy_head(model, 0, 2)
    attention = watched(model)
    (finding,) = attention.findings
    assert (finding.level, finding.kind, finding.layer) == ("note", "redundant-heads", "attn")
    assert finding.message == "Heads that look at the same keys: 0 and 2"
    assert finding.value == pytest.approx(0, abs=1e-3)
    rows = attention.heads()
    assert ["redundant" in row.flags for row in rows] == [True, False, True, False]
    assert (rows[0].nearest, rows[2].nearest) == (2, 0)


def test_a_head_stuck_on_the_class_token() -> None:
    model = seeded(scale=1.0)
    assert watched(model, WORDS).findings == ()
    with torch.no_grad():  # the queries of head 1 are constant, and only the class token has this direction
        model.attn.in_proj_weight[4:8] = 0
        model.attn.in_proj_bias[4:8] = 3.0
        model.attn.in_proj_weight[20:24] = 0.5
    (finding,) = watched(model, WORDS).findings
    assert (finding.level, finding.kind, finding.layer) == ("note", "sink", "attn")
    assert "Head 1 attends almost only to token 0 ('[CLS]')" in finding.message
    assert finding.value is not None
    assert finding.value > 0.9
    assert "the first token" in watched(model).findings[0].message


def test_separators_together_are_a_sink() -> None:
    model = seeded(scale=1.0)
    with torch.no_grad():
        model.attn.in_proj_weight[4:8], model.attn.in_proj_bias[4:8] = 0.0, 3.0
        model.attn.in_proj_weight[20:24] = 0.5
    x = torch.randn(2, 8, 16)
    x[:, [0, 7]] = 4.0
    with torch.no_grad(), capture_attention(model, WORDS) as attention:
        model(x)
    assert ["separator tokens" in finding.message for finding in attention.findings] == [True]


def test_dead_and_uniform_heads() -> None:
    model = seeded(scale=1.0)
    with torch.no_grad():
        model.attn.in_proj_weight[:4], model.attn.in_proj_bias[:4] = 0.0, 0.0  # queries of head 0
        model.attn.in_proj_weight[36:40], model.attn.in_proj_bias[36:40] = 0.0, 0.0  # values of head 1
    attention = watched(model)
    rows = attention.heads()
    assert "uniform" in rows[0].flags
    assert rows[0].entropy == pytest.approx(1)
    assert rows[1].output_norm == 0
    assert [(finding.kind, finding.value) for finding in attention.findings] == [("dead", 0.25)]
    assert "uniform" in str(rows)


def test_several_calls_are_judged_together() -> None:
    model = seeded()
    with capture_attention(model) as attention:
        for seed in range(3):
            model(torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(seed)))
    assert len(attention["attn"].calls) == 3
    entropies = torch.cat([call.probabilities for call in attention["attn"].calls])
    expected = -(entropies * entropies.log()).sum(-1).mean((0, 2)) / np.log(8)
    np.testing.assert_allclose([row.entropy for row in attention.heads()], expected, rtol=1e-5)


def test_rollout_equals_its_formula() -> None:
    model = plain_vit()
    x = torch.rand(2, 3, 16, 12, dtype=torch.float64)
    with torch.no_grad(), capture_attention(model) as attention:
        model(x + 1)
        model(x)
        seen = [block.attn.seen["p"].numpy() for block in model.blocks]
    expected = np.eye(13)
    for block in seen:
        step = (block.mean(1) + np.eye(13)) / 2
        expected = step @ expected
    np.testing.assert_allclose(attention.rollout(), expected, rtol=1e-12)
    first = attention.rollout(layers=["blocks.0.attn"])
    np.testing.assert_allclose(first, (seen[0].mean(1) + np.eye(13)) / 2, rtol=1e-12)
    with pytest.raises(OptionError, match="discard"):
        attention.rollout(discard=1.0)


def test_rollout_of_windows_names_the_stages() -> None:
    model = timm_swin()
    with torch.no_grad(), capture_attention(model) as attention:
        model(torch.rand(1, 3, 64, 64))
    with pytest.raises(CaptureError, match=r"16 tokens of 4 samples or windows and 16 tokens of 16 .* layers="):
        attention.rollout()


def test_rollout_does_not_mix_encoder_and_decoder() -> None:
    model = nn.Transformer(8, 2, 2, 2, 16, batch_first=True)
    x = torch.randn(1, 5, 8)
    with capture_attention(model) as attention:
        model(x, x)
    with pytest.raises(CaptureError, match=r"encoder.layers.1.self_attn and decoder.* layers="):
        attention.rollout()
    assert attention.rollout(layers=["encoder.layers.0", "encoder.layers.1"]).shape == (1, 5, 5)


def test_maps_on_the_picture(tmp_path: Path) -> None:
    model, x = timm_vit(), torch.rand(2, 3, 64, 64)
    with torch.no_grad(), capture_attention(model) as attention:
        model(x)
    p = attention["blocks.2.attn"].probabilities
    maps = attention.maps()
    torch.testing.assert_close(maps, p[:, :, 0, 1:].unflatten(-1, (4, 4)))
    torch.testing.assert_close(
        attention.maps("blocks.0", query=3)[0, 1, 1, 2], attention["blocks.0"].probabilities[0, 1, 3, 7]
    )
    assert attention.maps(grid=(2, 8)).shape == (2, 2, 2, 8)
    figure = attention.plot(picture=x[0], sample=0)
    assert len(figure.axes) == 3
    figure.savefig(tmp_path / "heads.png")
    page = attention.to_html(tmp_path / "page.html", picture=x[0])
    assert page.count("data:image/png") == 9  # three layers of a mean and two heads
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "http" not in page
    assert attention._repr_html_().startswith("<!doctype html>")
    for call in (lambda: attention.maps(query=99), lambda: attention.plot(sample=5)):
        with pytest.raises(OptionError, match=r"99|5"):
            call()
    with pytest.raises(ShapeError, match="more patches"):
        attention.maps(grid=(9, 9))


def test_words_in_the_terminal_and_as_html() -> None:
    attention = watched(seeded(), WORDS)
    p = attention["attn"].probabilities
    text = attention.text(query=2, head=1, sample=3)
    assert text.splitlines()[0] == "attn, head 1, query 'cat'"
    shares = [float(line.split()[-1]) for line in text.splitlines()[1:]]
    np.testing.assert_allclose(shares, p[3, 1, 2], atol=5e-4)
    bars = [line.count("█") for line in text.splitlines()[1:]]
    assert all(a >= b for (a, b), (x, y) in zip(pairwise(bars), pairwise(shares), strict=True) if x > y)
    colored = attention.text(color=True)
    assert colored.count("\x1b[0m") == 8
    page = attention.to_html()
    assert "&lt;b&gt;mat&lt;/b&gt;" in page
    assert page.count("head 3:") == 1
    with pytest.raises(ShapeError, match="fit no grid"):
        attention.maps()
    assert len(attention.plot().axes) == 5  # matrices of queries and keys
    for wrong in ({"head": 4}, {"sample": 6}, {"query": 8}):
        with pytest.raises(OptionError):
            attention.text(**wrong)
    with pytest.raises(ShapeError, match="tokens has 2 words, but 'attn' has 8 keys"):
        watched(seeded(), ["two", "words"]).text()
    assert "7  " in watched(seeded()).text()  # numbers stand for words that were not given

"""The examples of docs/diagnostics-attention.md run as they are written, and find what their comments say."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from documents import DOCS, blocks, run_examples

PAGE = (DOCS / "diagnostics-attention.md").read_text(encoding="utf-8")
BLOCKS = blocks(DOCS / "diagnostics-attention.md", "python")
PICTURES = ("diagnostics-attention.png", "diagnostics-gates.png")

with warnings.catch_warnings():  # of its own use of TorchScript
    warnings.simplefilter("ignore")
    pytest.importorskip("torch_geometric.nn")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(tmp_path_factory.mktemp("page"))
        names = run_examples(DOCS / "diagnostics-attention.md")
        for picture in PICTURES:
            assert Path(picture).stat().st_size > 1000
    return names


def test_attention(names):
    assert names["maps"].shape == (2, 4, 4, 4)
    assert names["rolled"].shape == (2, 17, 17)
    assert "cat" in names["page"]
    assert ("redundant-heads", "layers.0.self_attn") in [(one.kind, one.layer) for one in names["attention"].findings]


def test_sequences(names):
    assert names["trace"].at(1, reverse=True).cell.shape == (6, 12, 8)
    assert names["memory"].half_life.shape == (6,)
    assert (names["stuck"].kind, names["stuck"].level) == ("stuck-gate", "warn")
    assert "stays at 1" in names["stuck"].message


def test_the_frame_with_the_square_counts(names):
    explanation = names["explanation"]
    assert explanation.weights.argmax(1).tolist() == [1, 3]
    assert (explanation.weights.amax(1) > 0.5).all()
    assert explanation.heatmaps[0, 1].argmax().item() // 32 in range(6, 14)


def test_graphs(names):
    assert names["graph"].edge_index.shape == (2, 10)
    assert names["graph"].alpha.shape == (10, 3)


def test_no_example_is_longer_than_a_screen_and_the_pictures_are_small():
    assert all(block.count("\n") <= 13 for block in BLOCKS)
    assert all((DOCS / picture).stat().st_size < 60_000 for picture in PICTURES)

"""A method sees the evidence that it asked for, and nothing that other methods of the same pass asked for."""

from __future__ import annotations

from dataclasses import fields

import pytest
from evidence import Spy
from models import TinyViT, images, seeded, tiny

from gradcam_kit import explain_all
from gradcam_kit.types import Attention, Evidence, LayerCapture

OF_LAYER = {
    "gradients": Evidence.GRADIENTS,
    "curvature": Evidence.CURVATURE,
    "bias_gradients": Evidence.BIASES,
    "guided_gradients": Evidence.GUIDED,
    "head": Evidence.HEAD,
}
OF_ATTENTION = {
    "gradients": Evidence.ATTENTION_GRADIENTS,
    "block_gradients": Evidence.BLOCK_GRADIENTS,
    "projections": Evidence.PROJECTIONS,
}


def seen(record: LayerCapture | Attention, names: dict[str, Evidence]) -> set[str]:
    known = {one.name for one in fields(record)}
    assert set(names) <= known
    return {name for name in names if getattr(record, name) is not None}


@pytest.mark.parametrize("name", OF_LAYER)
def test_evidence_of_a_layer_goes_to_those_who_asked(name: str) -> None:
    model = tiny()
    everything = Evidence.GRADIENTS | Evidence.CURVATURE | Evidence.BIASES | Evidence.GUIDED | Evidence.HEAD
    greedy, modest = Spy(model, "relu2", needs=everything), Spy(model, "relu2", needs=OF_LAYER[name])
    explain_all([greedy, modest], images(2, size=(8, 8)))
    assert seen(greedy.seen["relu2"], OF_LAYER) == set(OF_LAYER)
    assert seen(modest.seen["relu2"], OF_LAYER) == {name}


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_evidence_of_the_attention_goes_to_those_who_asked(name: str) -> None:
    model, layer = seeded(TinyViT(tokens=4)), "blocks.1.norm1"
    everything = Evidence.ATTENTION | Evidence.ATTENTION_GRADIENTS | Evidence.BLOCK_GRADIENTS | Evidence.PROJECTIONS
    greedy = Spy(model, layer, needs=everything | Evidence.REPLAY)
    modest = Spy(model, layer, needs=Evidence.ATTENTION | OF_ATTENTION[name])
    without = Spy(model, layer, needs=Evidence.NONE)
    explain_all([greedy, modest, without], images(2, size=(8, 8)))
    attention = greedy.seen[layer].attention
    assert attention is not None
    assert seen(attention, OF_ATTENTION) == set(OF_ATTENTION)
    own = modest.seen[layer].attention
    assert own is not None
    assert seen(own, OF_ATTENTION) == {name}
    assert own.probabilities is attention.probabilities
    assert without.seen[layer].attention is None
    assert greedy.seen[layer].residual is not None
    assert modest.seen[layer].residual is None

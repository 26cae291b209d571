"""Cells of recurrent layers against torch.nn in every combination, and attention heads against loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradcam_kit.diagnostics.maths.gates import recurrent_trace
from gradcam_kit.diagnostics.maths.heads import attention_entropy, head_distances
from gradcam_kit.errors import InputError, ShapeError

N, T, FEATURES, HIDDEN = 4, 6, 3, 5
COMBINATIONS = [
    (kind, layers, both, bias, projection, packed, first)
    for kind, layers, both, bias, projection, packed, first in product(
        (nn.LSTM, nn.GRU, nn.RNN), (1, 2), (False, True), (True, False), (0, 2), (False, True), (False, True)
    )
    if not projection or kind is nn.LSTM
]


@pytest.mark.parametrize(("kind", "layers", "both", "bias", "projection", "packed", "first"), COMBINATIONS)
def test_each_cell_gives_the_modules_own_output(
    kind: type[nn.RNNBase], layers: int, both: bool, bias: bool, projection: int, packed: bool, first: bool
) -> None:
    options = {"proj_size": projection} if projection else {}
    module = kind(
        FEATURES, HIDDEN, layers, bias=bias, batch_first=first, bidirectional=both, dtype=torch.float64, **options
    )
    inputs = torch.randn(N, T, FEATURES, dtype=torch.float64)
    hidden = torch.randn(layers * (1 + both), N, projection or HIDDEN, dtype=torch.float64)
    cell = torch.randn(layers * (1 + both), N, HIDDEN, dtype=torch.float64)
    state = (hidden, cell) if kind is nn.LSTM else hidden
    given = inputs if first else inputs.transpose(0, 1)
    if packed:
        given = pack_padded_sequence(given, torch.tensor([2, 6, 1, 4]), batch_first=first, enforce_sorted=False)
    output, final = module(given, state)
    if packed:
        output, _ = pad_packed_sequence(output, batch_first=first)
    trace = recurrent_trace(module, given, state)
    torch.testing.assert_close(trace.output, output if first else output.transpose(0, 1), rtol=0, atol=1e-14)
    last_hidden, last_cell = final if kind is nn.LSTM else (final, None)
    found_hidden, found_cell = trace.final()
    torch.testing.assert_close(found_hidden, last_hidden, rtol=0, atol=1e-14)
    if last_cell is not None:
        torch.testing.assert_close(found_cell, last_cell, rtol=0, atol=1e-14)
    assert (len(trace.directions), len(trace.directions[0])) == (layers, 1 + both)


def test_gates_of_an_lstm_step_by_hand() -> None:
    module = nn.LSTM(1, 1, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.weight_ih_l0[:] = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        module.weight_hh_l0.zero_()
        module.bias_ih_l0.zero_()
        module.bias_hh_l0[:] = torch.tensor([0.0, 20.0, 0.0, 0.0])
    [[way]] = recurrent_trace(module, torch.tensor([[[0.5]]], dtype=torch.float64)).directions
    numbers = {name: gate.item() for name, gate in way.gates.items()}
    assert numbers["input"] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert numbers["forget"] == pytest.approx(1, abs=1e-8)
    assert numbers["cell"] == pytest.approx(np.tanh(1.5))
    assert numbers["output"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert way.cell is not None
    assert way.hidden.item() == pytest.approx(numbers["output"] * np.tanh(numbers["input"] * numbers["cell"]))


def test_one_sequence_without_a_batch_and_a_relu_cell() -> None:
    module = nn.RNN(FEATURES, HIDDEN, nonlinearity="relu", dtype=torch.float64)
    inputs = torch.randn(T, FEATURES, dtype=torch.float64)
    trace = recurrent_trace(module, inputs)
    torch.testing.assert_close(trace.output[0], module(inputs)[0], rtol=0, atol=1e-14)
    assert trace.directions[0][0].gates == {}


def test_what_is_not_recurrent_or_does_not_fit_is_an_error() -> None:
    with pytest.raises(InputError, match="is a Linear; expected"):
        recurrent_trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r"\(2, 2, 4\); expected \(n, t, 3\)"):
        recurrent_trace(nn.GRU(3, 2), torch.zeros(2, 2, 4))


def test_entropy_equals_loops_under_a_causal_mask() -> None:
    scores = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    attention = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = np.zeros((2, 3))
    for i, head in product(range(2), range(3)):
        rows = []
        for row in attention[i, head].numpy():
            used = row[row > 0]
            if len(used) > 1:
                rows.append(-(used * np.log(used)).sum() / np.log(len(used)))
        expected[i, head] = np.mean(rows)
    np.testing.assert_allclose(attention_entropy(attention), expected, rtol=1e-12)
    np.testing.assert_allclose(attention_entropy(attention, mask[None, None]), expected, rtol=1e-12)


def test_a_uniform_head_has_entropy_1_and_a_focused_one_0() -> None:
    heads = torch.stack([torch.full((4, 4), 0.25), torch.eye(4)])[None]
    assert attention_entropy(heads).tolist() == [[1.0, 0.0]]
    assert attention_entropy(heads[:, 1:]).tolist() == [[0.0]]
    assert attention_entropy(heads.half()).dtype == torch.float32


def test_distances_of_heads_equal_scipy() -> None:
    attention = torch.randn(2, 3, 4, 6, dtype=torch.float64).softmax(-1)
    attention[:, 2] = attention[:, 0]
    expected = [
        [
            np.mean([jensenshannon(attention[i, a, q], attention[i, b, q], base=2) for i in range(2) for q in range(4)])
            for b in range(3)
        ]
        for a in range(3)
    ]
    np.testing.assert_allclose(head_distances(attention), expected, atol=1e-7)
    assert head_distances(attention)[0, 2] < 0.05
    apart = torch.eye(2)[None, :, None, :]
    assert head_distances(apart)[0, 1] == pytest.approx(1)

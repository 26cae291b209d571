"""Gates and states of recurrent layers inside models, memory against Jacobians, stuck gates, models untouched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from traces import unchanged

from gradcam_kit.diagnostics import trace_recurrent
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, OptionError, UnknownNameError

WORDS, LENGTHS = torch.randint(0, 10, (3, 7), generator=torch.Generator().manual_seed(0)), torch.tensor([7, 3, 5])


class Text(nn.Module):
    """Packed words through a projecting LSTM in both directions, and a GRU that is not batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop, self.norm = nn.Embedding(10, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True, proj_size=3)
        self.gru, self.unused = nn.GRU(6, 5), nn.RNN(2, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        x = self.norm(self.drop(self.words(words)).mT).mT
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
        return self.gru(output.transpose(0, 1))[0]


def text() -> Text:
    torch.manual_seed(0)
    return Text().double()


def lstm_by_hand(module: nn.LSTM, x: Tensor) -> dict[str, np.ndarray]:
    """One layer in NumPy, gate by gate."""
    own = {name: value.detach().double().numpy() for name, value in module.named_parameters()}
    hidden = cell = np.zeros((len(x), module.hidden_size))
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("input", "forget", "cell", "output", "c", "h")}
    for t in range(x.shape[1]):
        a = x[:, t].double().numpy() @ own["weight_ih_l0"].T + own["bias_ih_l0"]
        i, f, g, o = np.split(a + hidden @ own["weight_hh_l0"].T + own["bias_hh_l0"], 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        for name, value in zip(found, (i, f, np.tanh(g), o, cell, hidden), strict=True):
            found[name].append(value)
    return {name: np.stack(values, 1) for name, values in found.items()}


def test_gates_equal_a_transcription() -> None:
    module, x = nn.LSTM(3, 5, batch_first=True), torch.randn(2, 6, 3)
    with unchanged(module, x):
        trace = trace_recurrent(module, x)
    expected = lstm_by_hand(module, x)
    for name, gate in trace["LSTM"].gates.items():
        np.testing.assert_allclose(gate, expected[name], atol=1e-6)
    np.testing.assert_allclose(trace[""].cell, expected["c"], atol=1e-6)
    np.testing.assert_allclose(trace[""].hidden, expected["h"], atol=1e-6)
    assert trace[""].at(0).gates.keys() == {"input", "forget", "cell", "output"}


@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_packed_sequences_and_projections(training: bool) -> None:
    model = text().train(training)
    with unchanged(model):
        trace = trace_recurrent(model, (WORDS, LENGTHS))
    assert list(trace) == ["lstm", "gru"]
    assert trace.never_ran == ("unused",)
    assert trace["lstm"].lengths.tolist() == [7, 3, 5]
    assert (trace["lstm"].layers, trace["lstm"].bidirectional) == (2, True)
    assert trace["lstm"].at(1, reverse=True).gates["forget"].shape == (3, 7, 6)
    assert trace["lstm"].at(1, reverse=True).hidden.shape == (3, 7, 3)
    assert trace["gru"].gates.keys() == {"reset", "update", "new"}
    assert trace["gru"].cell is None
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(trace["gru"].output, model(WORDS, LENGTHS).transpose(0, 1), rtol=0, atol=1e-12)
    by_keyword = trace_recurrent(model, {"words": WORDS, "lengths": LENGTHS}, "gru")
    assert list(by_keyword) == ["gru"]


def test_a_packed_input_and_a_module_that_runs_twice() -> None:
    module = nn.GRU(3, 4, batch_first=True, dtype=torch.float64)
    x = torch.randn(3, 7, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    assert trace_recurrent(module, packed)["GRU"].lengths.tolist() == [7, 3, 5]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = module

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x, self.gru(x)[1])[0]

    calls = trace_recurrent(Twice(), x)["gru"].calls
    assert len(calls) == 2
    torch.testing.assert_close(calls[1].output, Twice()(x), rtol=0, atol=1e-12)


def jacobian_norms(module: nn.Module, x: Tensor, reverse: bool) -> np.ndarray:
    """The norm of d last state / d input at each step, with autograd's own Jacobian."""
    norms = []
    for own in x:
        states = torch.autograd.functional.jacobian(lambda one: module(one[None])[1][int(reverse), 0], own)
        norms.append(states.square().sum((0, 2)).sqrt().numpy())
    return np.stack(norms)


@pytest.mark.parametrize("reverse", [False, True])
def test_memory_by_gates_and_by_gradients(reverse: bool) -> None:
    module = nn.GRU(3, 5, batch_first=True, bidirectional=True, dtype=torch.float64)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    trace = trace_recurrent(module, x)["GRU"]
    with unchanged(module, x):
        memory = trace.memory(reverse=reverse)
    expected = jacobian_norms(module, x, reverse)
    np.testing.assert_allclose(memory.gradients, expected, rtol=1e-10)
    keeps = trace.at(0, reverse).gates["update"].mean((0, 1)).numpy()
    np.testing.assert_allclose(memory.gates, 1 / (1 - keeps), rtol=1e-12)
    for own, found in zip(expected if reverse else expected[:, ::-1], memory.half_life.tolist(), strict=True):
        lag = next(place for place, norm in enumerate(own) if norm <= own[0] / 2)
        assert lag - 1 < found <= lag
        between = math.log(own[lag - 1]) + (found - lag + 1) * (math.log(own[lag]) - math.log(own[lag - 1]))
        assert between == pytest.approx(math.log(own[0] / 2))
    estimate = trace.memory(reverse=reverse, probes=3).gradients
    assert 0.2 < float((estimate / memory.gradients).median()) < 2
    assert torch.equal(estimate, trace.memory(reverse=reverse, probes=3).gradients)


def test_memory_of_a_state_that_halves() -> None:
    module = nn.LSTM(1, 1, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_ih_l0[2] = 1e-3  # the candidate is almost linear in the input, and the forget gate is 1/2
    memory = trace_recurrent(module, torch.randn(2, 5, 1, dtype=torch.float64))["LSTM"].memory()
    assert memory.gates is not None
    assert memory.gates.tolist() == pytest.approx([2.0])
    assert memory.half_life.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_changed_weights_are_told() -> None:
    module = nn.RNN(3, 4, batch_first=True)
    trace = trace_recurrent(module, torch.randn(2, 5, 3))["RNN"]
    assert trace.memory().gates is None
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(CaptureError, match="weights of 'RNN' have changed"):
        trace.memory()


def planted(gate: int, bias: float, units: int = 8) -> Any:
    module = nn.LSTM(3, 8, batch_first=True)
    with torch.no_grad():
        module.bias_ih_l0[8 * gate : 8 * gate + units] = bias
    return trace_recurrent(module, torch.randn(6, 10, 3)).findings


@pytest.mark.parametrize(("bias", "end"), [(20.0, "1"), (-20.0, "0")])
def test_a_forget_gate_that_is_stuck(bias: float, end: str) -> None:
    assert planted(1, 0.0) == ()
    (finding,) = [one for one in planted(1, bias) if one.kind == "stuck-gate"]
    assert (finding.level, finding.layer, finding.value) == ("warn", "LSTM", 1.0)
    assert finding.message == f"The forget gate of 8 of 8 units stays at {end}"
    assert finding.n == 6


def test_one_gate_of_many_units_is_a_note_and_the_other_gates_are_named() -> None:
    module = nn.GRU(3, 16, 2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        module.bias_ih_l1_reverse[16] = 20.0  # the update gate of one unit
    (finding,) = trace_recurrent(module, torch.randn(6, 10, 3)).findings
    assert (finding.level, finding.kind, finding.value) == ("note", "stuck-gate", 1 / 16)
    assert finding.message == "The update gate of 1 of 16 units of layer 1, in reverse stays at 1"


def test_gates_and_states_at_their_ends() -> None:
    module = nn.LSTM(3, 8, batch_first=True)
    with torch.no_grad():
        module.weight_ih_l0[:8] *= 200  # the input gate is open or closed, and moves between
        module.weight_ih_l0[16:24] *= 1000
        module.bias_ih_l0[8:16] = 1.0
    kinds = {(one.kind, one.level) for one in trace_recurrent(module, torch.randn(6, 20, 3)).findings}
    assert ("stuck-gate", "warn") in kinds
    module = nn.RNN(3, 8, batch_first=True)
    with torch.no_grad():
        module.weight_ih_l0 *= 1000
    (finding,) = trace_recurrent(module, torch.randn(6, 20, 3)).findings
    assert (finding.level, finding.kind) == ("bad", "saturated")
    assert trace_recurrent(nn.RNN(3, 8, nonlinearity="relu"), 100 * torch.randn(6, 20, 3)).findings == ()


class Louder(nn.LSTM):
    """An LSTM that is none."""

    def forward(self, *args: Any) -> Any:
        output, state = super().forward(*args)
        return 2 * output, state


def test_what_cannot_be_traced_is_one_line() -> None:
    x = torch.randn(2, 4, 3)
    model = text()
    with pytest.raises(CaptureError, match="recomputed output of 'Louder' differs"):
        trace_recurrent(Louder(3, 4, batch_first=True), x)
    with pytest.raises(CaptureError, match=r"applies dropout .* call model.eval\(\) first"):
        trace_recurrent(nn.LSTM(3, 4, 2, dropout=0.5), x)
    with pytest.raises(LayerNotFoundError, match=r"Linear has no recurrent layer; looked for nn.RNN, nn.LSTM"):
        trace_recurrent(nn.Linear(3, 4), x)
    with pytest.raises(LayerNotFoundError, match="cells that the model steps itself are not traced: 0"):
        trace_recurrent(nn.Sequential(nn.LSTMCell(3, 4)), x)
    with pytest.raises(LayerNotFoundError, match="did you mean 'lstm'"):
        trace_recurrent(model, (WORDS, LENGTHS), "lstn")
    with pytest.raises(InputError, match="layer 'words' is an Embedding; expected"):
        trace_recurrent(model, (WORDS, LENGTHS), "words")
    with pytest.raises(CaptureError, match="none of the recurrent layers of Text ran"):
        trace_recurrent(model, (WORDS, LENGTHS), "unused")
    with pytest.raises(InputError, match="without a tensor"):
        trace_recurrent(nn.GRU(3, 4), 3)
    with pytest.raises(InputError, match="expected a torch"):
        trace_recurrent(len, x)
    trace = trace_recurrent(model, (WORDS, LENGTHS))
    with pytest.raises(CaptureError, match="'unused' did not run"):
        trace["unused"]
    with pytest.raises(UnknownNameError, match="did you mean 'lstm'"):
        trace["lstmm"]
    with pytest.raises(OptionError, match="layer is 2"):
        trace["lstm"].at(2)
    with pytest.raises(OptionError, match="runs only forward"):
        trace["gru"].at(0, reverse=True)
    with pytest.raises(RuntimeError), unchanged(model):
        trace_recurrent(model, (WORDS, LENGTHS + 10))

"""What training scripts save beside weights, and weights that do not fit: nothing reaches the model before all fit."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradcam_kit.errors import CheckpointError
from gradcam_kit.models.checkpoints import load_checkpoint

State = dict[str, Any]


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def load(content: Any, path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    torch.save(content, path / "last.ckpt")
    model = make(1)
    return model, load_checkpoint(model, path / "last.ckpt")


def refused(content: Any, path: Path) -> str:
    """What is said of a checkpoint that does not fit, after which the model is as it was."""
    torch.save(content, path / "last.ckpt")
    model, before = make(1), make(1).state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path / "last.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(caught.value)


def behind(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


STATE, OTHER = make(0).state_dict(), make(2).state_dict()
FOREIGN = {"criterion.pos_weight": torch.ones(4), "train_acc.tp": torch.zeros(4)}
AVERAGED = [behind("ema_model.", OTHER), behind("model_ema.module.", OTHER), behind("swa.", OTHER)]


@pytest.mark.parametrize(
    "prefix", ["net.", "model.module.", "module.model._orig_mod.", "backbone.", "a.b.c.", "model."]
)
@pytest.mark.parametrize("extra", [{}, FOREIGN, *AVERAGED])
def test_weights_behind_a_prefix_are_found_beside_names_of_others(tmp_path: Path, prefix: str, extra: State) -> None:
    model, notes = load({"epoch": 3, "state_dict": {**extra, **behind(prefix, STATE)}}, tmp_path)
    assert torch.equal(model[0].weight, STATE["0.weight"])
    assert bool(notes) == bool(extra)
    if extra is FOREIGN:
        assert ": criterion.pos_weight, train_acc.tp" in notes[0]
    elif extra:
        assert "another set of weights" in notes[0]


@pytest.mark.parametrize(
    "content",
    [
        behind("", {"0._orig_mod." + name[2:] if name[0] == "0" else name: value for name, value in STATE.items()}),
        {"hyper": {"nets": OrderedDict(behind("model.", STATE))}},
        {"weights": behind("module.", STATE), "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}},
        {**STATE, "epoch": 3, "best": None, "name": "run 7", "scores": [0.5]},
        {"state_dict": STATE, "state_dict_ema": OTHER},
        {"model": STATE, "ema": OTHER, 7: "seven"},
        {"model": behind("model.", STATE), "net": behind("x.", STATE)},
        {**behind("model.", STATE), **behind("net.", STATE)},
    ],
)
def test_wrappers_and_nests_of_all_kinds(tmp_path: Path, content: State) -> None:
    model, _ = load(content, tmp_path)
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({**behind("student.", STATE), **behind("teacher.", OTHER)}, ["prefix 'student.'", "prefix 'teacher.'"]),
        ({"gen": STATE, "disc": OTHER}, ["under 'gen'", "under 'disc'"]),
        ({"model": STATE, "state_dict": OTHER}, ["under 'model'", "under 'state_dict'"]),
    ],
)
def test_two_sets_of_weights_are_not_guessed(tmp_path: Path, content: State, places: list[str]) -> None:
    said = refused(content, tmp_path)
    assert "several sets of weights" in said
    assert all(place in said for place in places)


def renamed(state: State) -> State:
    return {name.replace("3.", "head."): value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "net.module."])
def test_a_head_of_another_name_is_named(tmp_path: Path, prefix: str) -> None:
    said = refused({"state_dict": {**behind(prefix, renamed(STATE)), **FOREIGN}}, tmp_path)
    assert "missing 3.weight, 3.bias" in said
    assert "head.weight, head.bias" in said
    assert "0.weight" not in said


def with_(**changes: Any) -> State:
    return {**STATE, **{name.replace("_", ".", 1): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**STATE, "more": torch.ones(1)}, "unexpected more"),
        ({name: value for name, value in STATE.items() if name != "3.bias"}, "missing 3.bias"),
        ({**STATE, "3.weight": torch.zeros(5, 4)}, "3.weight is (5, 4) in the file, (2, 4) in the model"),
        ({**STATE, "0.weight": STATE["0.weight"].to(torch.complex64)}, "its imaginary part would be lost"),
        ({**STATE, "1.num_batches_tracked": torch.tensor(float("nan"))}, "nan would become another value"),
        ({**STATE, "1.num_batches_tracked": torch.tensor(float("inf"))}, "inf would become another value"),
        ({**STATE, "1.num_batches_tracked": torch.tensor(1e30)}, "would become another value"),
        ({**STATE, "3.bias": torch.tensor([1e300, 0.0], dtype=torch.float64)}, "1e+300 would overflow"),
        ({**STATE, "3.bias": 0.5}, "3.bias is a float in the file, a tensor in the model"),
        ({**STATE, "3.bias": None}, "3.bias is a NoneType in the file"),
        ({**STATE, "3.bias": [0.1, 0.2]}, "3.bias is a list in the file"),
        ({**STATE, "3.bias": "text"}, "3.bias is a str in the file"),
        ({**STATE, "3.weight": torch.eye(2, 4).to_sparse()}, "3.weight is torch.sparse_coo in the file"),
        ({**STATE, "3.weight": torch.zeros(2, 4, device="meta")}, "3.weight is without values"),
    ],
)
def test_what_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path, content: State, says: str) -> None:
    assert says in refused(content, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("1.num_batches_tracked", torch.tensor(7.0)),
        ("1.num_batches_tracked", torch.tensor(7, dtype=torch.int32)),
        ("3.bias", torch.tensor([0.5, float("inf")], dtype=torch.float64)),
        ("3.bias", torch.tensor([0.5, 0.25], dtype=torch.bfloat16)),
        ("3.bias", torch.tensor([3, 4])),
        ("3.bias", nn.Parameter(torch.tensor([1.0, 2.0]))),
    ],
)
def test_values_of_another_type_that_stay_what_they_are_are_taken(tmp_path: Path, name: str, value: Tensor) -> None:
    model, notes = load({**STATE, name: value}, tmp_path)
    assert torch.equal(model.state_dict()[name].double(), value.detach().double())
    assert notes == ()


def test_fractions_that_whole_numbers_lose_are_told(tmp_path: Path) -> None:
    model, notes = load({**STATE, "1.num_batches_tracked": torch.tensor(7.5)}, tmp_path)
    assert int(model[1].num_batches_tracked) == 7
    assert notes == ("fractions of 1.num_batches_tracked in last.ckpt are lost, because the model has integers there",)


class Stubborn(nn.Module):
    """Refuses its weights after some of them have been copied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.last.register_load_state_dict_pre_hook(self._refuse)

    @staticmethod
    def _refuse(*_: Any) -> None:
        raise RuntimeError("not\nmine")


def test_a_module_that_refuses_half_way_gets_its_own_values_back(tmp_path: Path) -> None:
    model = Stubborn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({name: value + 1 for name, value in before.items()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="RuntimeError: not mine"):
        load_checkpoint(model, tmp_path / "last.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (np.float64(0.5), "numpy"),
        (Path("data"), "pathlib"),
        (np.zeros(3), "numpy"),
    ],
)
@pytest.mark.parametrize("save", [torch.save, lambda *args: torch.save(*args, _use_new_zipfile_serialization=False)])
def test_harmless_objects_of_training_scripts_are_named_with_the_way_out(
    tmp_path: Path, extra: Any, named: str, save: Callable[..., None]
) -> None:
    save({"state_dict": STATE, "args": extra}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(make(), tmp_path / "last.ckpt")
    assert named in str(caught.value)
    assert "torch.save(torch.load('last.ckpt', weights_only=False)['state_dict'], 'weights.pth')" in str(caught.value)


def test_a_whole_model_is_named_with_the_way_out(tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"holds a whole model .*\.state_dict\(\), 'weights\.pth'\)"):
        load_checkpoint(make(), tmp_path / "model.pth")

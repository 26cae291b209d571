"""Checkpoints that lack names, have former ones, or give one tensor two values; the way out that errors name."""

from __future__ import annotations

import argparse
import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from gradcam_kit.errors import CheckpointError
from gradcam_kit.models.checkpoints import load_checkpoint


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


STATE = make(0).state_dict()
OLD = {name: value for name, value in STATE.items() if "num_batches_tracked" not in name}


@pytest.mark.parametrize(
    "content", [OLD, {"model": {f"module.{name}": value for name, value in OLD.items()}}], ids=["plain", "wrapped"]
)
def test_batch_norms_of_former_times(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "old.pth")
    model = make(1)
    [note] = load_checkpoint(model, tmp_path / "old.pth")
    assert "lacks 1.num_batches_tracked" in note
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())


def test_the_former_names_of_weight_norm(tmp_path: Path) -> None:
    state = {"weight_g": torch.full((2, 1), 5.0), "weight_v": torch.tensor([[3.0, 4.0], [0, 1]]), "bias": torch.ones(2)}
    torch.save(state, tmp_path / "old.pth")
    model = parametrizations.weight_norm(nn.Linear(2, 2))
    load_checkpoint(model, tmp_path / "old.pth")
    assert torch.equal(model.weight, torch.tensor([[3.0, 4.0], [0, 5]]))


class Renamed(nn.Linear):
    """A module that renames what it once called otherwise."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("bias", [torch.ones(2), torch.ones(3), torch.full((2,), 1j)])
def test_names_that_a_module_understands_are_checked_like_others(tmp_path: Path, bias: torch.Tensor) -> None:
    torch.save({"kernel": torch.ones(2, 2), "bias": bias}, tmp_path / "old.pth")
    model = Renamed(2, 2)
    before = model.weight.detach().clone()
    if bias.shape == (2,) and not bias.is_complex():
        load_checkpoint(model, tmp_path / "old.pth")
        assert torch.equal(model.weight, torch.ones(2, 2))
        return
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(model, tmp_path / "old.pth")
    assert torch.equal(model.weight, before)


def test_one_tensor_under_two_names_has_one_value(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    torch.save({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}, tmp_path / "same.pth")
    load_checkpoint(model, tmp_path / "same.pth")
    torch.save({"a.weight": torch.zeros(2, 2), "b.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"a\.weight and b\.weight differ in the file but are one tensor"):
        load_checkpoint(model, tmp_path / "other.pth")
    assert torch.equal(model["a"].weight, torch.ones(2, 2))


@pytest.fixture
def _nothing_is_allowed() -> Iterator[None]:
    """Libraries of training let torch load classes of theirs, for the rest of the process."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.usefixtures("_nothing_is_allowed")
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("extra", [argparse.Namespace(lr=1), collections.defaultdict(list)], ids=["args", "log"])
def test_the_way_out_works_as_it_is_written(
    tmp_path: Path, key: str, extra: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({key: STATE, "extra": extra}, "best.ckpt")
    with pytest.raises(CheckpointError, match="besides its weights") as caught:
        load_checkpoint(make(1), Path("best.ckpt"))
    found = re.search(r"torch\.save\(.*\)$", str(caught.value))
    assert found is not None
    eval(found[0])
    model = make(1)
    load_checkpoint(model, Path("weights.pth"))
    assert torch.equal(model[0].weight, STATE["0.weight"])

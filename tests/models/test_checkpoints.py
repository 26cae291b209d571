"""Checkpoints: found under their wrappings, refused when they do not fit or would run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import disk
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradcam_kit.errors import (
    CheckpointError,
)
from gradcam_kit.models import load_model
from gradcam_kit.models.checkpoints import weights_hash


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def trained() -> nn.Module:
    """The model of `shop:net` with other weights than it is built with."""
    model = load_model("shop:net").model
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    return model


@pytest.mark.parametrize("nest", ["{}", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_checkpoint_is_found_under_its_wrappings(tmp_path: Path, nest: str, prefix: str) -> None:
    state = {prefix + name: value for name, value in trained().state_dict().items()}
    torch.save(state if nest == "{}" else {"epoch": 3, nest: state}, tmp_path / "best.pt")
    loaded = load_model("shop:net", checkpoint=tmp_path / "best.pt")
    assert weights_hash(loaded.model) == weights_hash(trained())
    assert loaded.weights == "checkpoint best.pt"


def test_a_safetensors_checkpoint(tmp_path: Path) -> None:
    save_file(trained().state_dict(), tmp_path / "best.safetensors")
    loaded = load_model("shop:net", checkpoint=tmp_path / "best.safetensors")
    assert weights_hash(loaded.model) == weights_hash(trained())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("fc.bias"), "missing fc.bias"),
        (lambda state: state.update({f"x{i}": state["fc.bias"] for i in range(5)}), "unexpected x0, x1, x2 and 2 more"),
        (
            lambda state: state.update({"fc.weight": torch.zeros(7, 8)}),
            "fc.weight is (7, 8) in the file, (3, 8) in the model",
        ),
    ],
    ids=["missing", "unexpected", "size"],
)
def test_a_checkpoint_that_does_not_fit_names_what_differs(tmp_path: Path, change: object, says: str) -> None:
    state = dict(trained().state_dict())
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model("shop:net", checkpoint=tmp_path / "best.pt")
    assert says in str(caught.value)


class Runs:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, save: object) -> None:
    trap = tmp_path / "it ran"
    save({"state_dict": trained().state_dict(), "extra": Runs(trap)}, tmp_path / "best.pt")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"loading it would run code from the file, which is refused"):
        load_model("shop:net", checkpoint=tmp_path / "best.pt")
    assert not trap.exists()
    Runs(trap).__reduce__()[0](trap)  # type: ignore[operator]
    assert trap.exists()  # so the trap works


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
@pytest.mark.parametrize("content", [b"", b"just a text\n" * 9, b"PK\x03\x04 cut short"], ids=["empty", "text", "cut"])
def test_damaged_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=f"{name} (cannot be read as a checkpoint|is not a plain file of tensors)"
    ):
        load_model("shop:net", checkpoint=tmp_path / name)


def test_other_contents_are_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"no state dict \(found keys epoch, optimizer\)"):
        load_model("shop:net", checkpoint=tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="there is no checkpoint file"):
        load_model("shop:net", checkpoint=tmp_path / "other.pt")

"""Weights from files, without running code that a file carries."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gradcam_kit.errors import CheckpointError

_NESTS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 3


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into the model: every weight, and nothing else.

    The state dict may lie under a key such as `state_dict`, and its names may begin as `DataParallel`, `torch.compile`
    or Lightning write them.

    Raises:
        CheckpointError: a file that cannot be read, holds code, or does not fit the model; the message names what.
    """
    state = _without_prefixes(_state_dict(read_checkpoint(path), path), model)
    own = model.state_dict()
    sizes = [
        f"{name} is {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and isinstance(own[name], Tensor) and state[name].shape != own[name].shape
    ]
    if sizes:
        raise CheckpointError(f"{path} does not fit the model: {_few(sizes)}")
    keys = model.load_state_dict(state, strict=False)
    wrong = {"missing": keys.missing_keys, "unexpected": keys.unexpected_keys}
    if any(wrong.values()):
        found = "; ".join(f"{kind} {_few(names)}" for kind, names in wrong.items() if names)
        raise CheckpointError(f"{path} does not fit the model: {found}")


def read_checkpoint(path: Path) -> Any:
    """Read a safetensors file (by its suffix) or a PyTorch file with `weights_only=True`.

    Raises:
        CheckpointError: no such file, a damaged one, or one that would have to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about formats that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no plain file of tensors: it is damaged, or loading it would run code that it carries; "
            "that is refused: save model.state_dict(), or a safetensors file"
        ) from error
    except Exception as error:  # what a damaged file makes the readers raise has no common type
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}); expected safetensors or a saved model.state_dict()"
        ) from error


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state_dict(content: Any, path: Path) -> dict[str, Any]:
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = f"keys {_few(list(map(str, content)))}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} holds no state dict (found {found or 'nothing'}); save model.state_dict()")
    return dict(content)


def _without_prefixes(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Drop what wrappers put in front of the names, as long as no name is one of the model."""
    own = model.state_dict().keys()
    while not own & state.keys():
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

"""Load weights from files without running code in them, and change the model only if everything fits."""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradcam_kit.errors import CheckpointError, raise_interruption
from gradcam_kit.models.casting import fitted
from gradcam_kit.models.former_names import understood
from gradcam_kit.models.state_dicts import chosen_state, few

_HARMLESS = re.compile(
    r"argparse\.Namespace|pathlib(\._local)?\.\w*Path|numpy\.|_codecs\.encode|collections\.|datetime\.|types\.SimpleNamespace|"
    r"builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|range|set|slice|str|tuple)$|"
    r"decimal\.Decimal|fractions\.Fraction|uuid\.UUID|enum\.|torch\.torch_version\.|"
    r"omegaconf\.|yacs\.|easydict\.|addict\.|box\.|ml_collections\.|pytorch_lightning\.|lightning\.|lightning_fabric\."
)
"""Matches names of classes and functions whose objects training scripts store besides weights: settings, paths, ..."""

_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_FORMER = 4  # number of pickles at the beginning of a file in the former format; the last one has the keys
_MOST_READ = 2**26  # maximum number of bytes that are read of the pickle in a file

_MODULES = re.compile(r"torch\.nn\.modules\.|torchvision\.models\.|timm\.")


def load_checkpoint(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load all weights of a file into the model, but only if all of them fit.

    The weights may be under keys such as `state_dict`, and their names may have the prefix of a wrapper (`module.`,
    `model.`, `net.`, ...). Names without this prefix belong to something else (a loss, a metric, averaged weights) and
    are left out.

    Returns:
        Notes on weights that were left out, missing or truncated to integers, one line for each kind.

    Raises:
        CheckpointError: the file cannot be read, holds code, or does not fit the model; the message names the cause.
    """
    content = read_checkpoint(path)
    own = dict(model.state_dict())
    state, notes = chosen_state(content, own, path, lambda given: understood(model, given))
    ready, rounded = fitted(state, own, path)
    _put_in(model, own, ready, path)
    return (*notes, *rounded)


def read_checkpoint(path: Path) -> Any:
    """Read a safetensors file (by its suffix) or a PyTorch file with `weights_only=True`.

    Raises:
        CheckpointError: the file does not exist, is damaged, or would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # formats about which torch warns are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, error)) from error
    except Exception as error:  # for damaged files readers raise exceptions of any type
        raise_interruption(error)
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}); expected safetensors or a saved model.state_dict()"
        ) from error


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _put_in(model: nn.Module, own: Mapping[str, Any], ready: Mapping[str, Any], path: Path) -> None:
    """Copy fitting weights into the model; if a module still refuses them, restore the model's own values."""
    before = {name: value.detach().clone() for name, value in own.items() if _is_plain(value)}
    try:
        model.load_state_dict(ready)
    except Exception as error:  # modules may override loading
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)
        raise_interruption(error)
        said = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit the model: {type(error).__name__}: {said}") from error


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value)


def _refused(path: Path, error: Exception) -> str:
    """Return a message that names the objects that prevent loading, and says how to save only the weights."""
    names = _objects(path, error)
    harmless = [name for name in names if _HARMLESS.match(name)]
    if names and len(harmless) == len(names):
        return (
            f"{path} holds {few(names)} besides its weights, and loading such objects could run code from "
            f"the file; if you trust it, save only its weights: {_saving(path, _state_key(path))}"
        )
    if any(_MODULES.match(name) for name in names):
        return (
            f"{path} holds a whole model ({few(names)}), and loading it would run code from the file, which "
            f"is refused; if you trust it, save only its weights: {_saving(path, '.state_dict()')}"
        )
    found = f" (it names {few([name for name in names if name not in harmless])})" if names else ""
    return (
        f"{path} is not a plain file of tensors: it is damaged, or loading it would run code from the file, "
        f"which is refused{found}; save model.state_dict(), or a safetensors file"
    )


def _saving(path: Path, part: str) -> str:
    return f"torch.save(torch.load({path.name!r}, weights_only=False){part}, 'weights.pth')"


def _state_key(path: Path) -> str:
    """Return the key of the weights in a saved mapping, as far as it can be found without loading."""
    texts = set[str]()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as file:
                    texts |= _texts(BytesIO(file.read(_MOST_READ)))
        else:
            with path.open("rb") as file:
                for _ in range(_FORMER):
                    texts |= _texts(file)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass  # the key is unknown for a damaged file or another format
    return next((f"[{key!r}]" for key in _KEYS if key in texts), "")


def _texts(file: Any) -> set[str]:
    """Return the strings in a pickle, which is disassembled instead of loaded."""
    return {argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str)}


def _objects(path: Path, error: Exception) -> list[str]:
    """Return the classes and functions that prevent loading a file, as far as possible, without importing them."""
    try:
        names: Iterable[str] = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # for older formats, the error names only the first object
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return sorted(set(names))

"""Everything that a call must leave as it was, taken before and compared after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch.nn.modules import module as global_hooks


@contextmanager
def unchanged(model: nn.Module, *inputs: Tensor) -> Iterator[None]:
    """Fail with the names of whatever is different at the end of the block, also if it ends by an exception."""
    before = traces(model, *inputs)
    try:
        yield
    finally:
        after = traces(model, *inputs)
        different = [key for key in before.keys() | after.keys() if not same(before.get(key), after.get(key))]
        assert not different, f"changed: {sorted(different)}"


def traces(model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """Values of tensors are copies; objects stand for themselves."""
    found = {f"global {key}": value for key, value in settings().items()}
    for name, module in model.named_modules(remove_duplicate=False):
        found[f"module {name}"] = id(module)
        for key, value in vars(module).items():
            if "hook" in key and isinstance(value, dict):
                found[f"{key} of {name}"] = [(number, id(hook)) for number, hook in value.items()]
            elif key not in ("_parameters", "_buffers", "_modules"):
                found[f"{key} of {name}"] = value if isinstance(value, bool | int | float | str) else id(value)
        for key, tensor in {**module._parameters, **module._buffers}.items():
            found |= {f"{what} of {name}.{key}": value for what, value in tensor_traces(tensor).items()}
    for i, tensor in enumerate(inputs):
        found |= {f"{what} of input {i}": value for what, value in tensor_traces(tensor).items()}
    return found


def tensor_traces(tensor: Tensor | None) -> dict[str, Any]:
    if tensor is None:
        return {"identity": None}
    gradient = None if tensor.is_inference() else tensor.grad
    return {
        "identity": id(tensor),
        "values": tensor.detach().clone(),
        "requires_grad": tensor.requires_grad,
        "gradient": id(gradient),
        "values of the gradient": None if gradient is None else gradient.clone(),
    }


def settings() -> dict[str, Any]:
    """The state of torch and NumPy that a call could touch; Python's generator serves the tests' checks of types."""
    return {
        "random state": torch.get_rng_state(),
        "random state of NumPy": torch.from_numpy(np.random.get_state()[1].copy()),  # noqa: NPY002
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "default dtype": torch.get_default_dtype(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "cudnn": torch.backends.cudnn.enabled,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "kernels": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "compiler stance": eval_frame._stance.stance,
        "module hooks": [
            len(v) for k, v in vars(global_hooks).items() if k.startswith("_global") and hasattr(v, "__len__")
        ],
    }


def same(a: Any, b: Any) -> bool:
    """Bit for bit, with NaN equal to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return type(a) is type(b) and bool(a == b)


class FaultError(Exception):
    """What a test raises."""


def fault(*_: Any, **__: Any) -> Any:
    raise FaultError("on purpose")

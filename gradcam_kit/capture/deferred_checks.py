"""Silent garbage made loud: conditions that are computed on the device and read once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from gradcam_kit.errors import CaptureError, GradCamKitError, NonFiniteError
from gradcam_kit.functional import finite, on_device

_P = ParamSpec("_P")
_T = TypeVar("_T")
_answers: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()
"""What was found out about a model."""
_ignore_cached: ContextVar[bool] = ContextVar("_expects_nothing", default=False)


def on_host(tensor: Tensor) -> Tensor:
    """The values where Python can read them; on CUDA this waits for the work of this stream alone."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    event.synchronize()
    return host


class _MisjudgedError(GradCamKitError):
    """What was found out about a model in an earlier call, and was expected again, was otherwise in this one."""


def retry_without_cache(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Do the whole work again, expecting nothing, when something in it was not as it was expected to be."""

    @wraps(work)
    def judged(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with suppress(_MisjudgedError):
            return work(*args, **kwargs)
        token = _ignore_cached.set(True)  # only here the error is gone, and with it what it kept in memory
        try:
            return work(*args, **kwargs)
        finally:
            _ignore_cached.reset(token)

    return judged


@dataclass
class Checks:
    """Collects conditions that are read once; a call without errors waits for the device only there."""

    model: nn.Module
    pending: list[tuple[Bool[Tensor, " n"], Callable[[int], Exception | None]]] = field(default_factory=list)

    def add(self, bad: Bool[Tensor, " n"], error: Callable[[int], Exception | None]) -> None:
        """Remember a condition per sample, and the error of a sample where it holds; None for a false alarm."""
        if bad.numel():
            self.pending.append((bad, error))

    def holds(self, question: Hashable, condition: Bool[Tensor, ""]) -> bool:
        """Whether something is true of the model's structure, as these very samples show.

        The first call waits for the answer. On a device later ones expect the same, and read whether it is with all
        other conditions; where it is not, the work starts again.
        """
        known = _answers.setdefault(self.model, {})
        if condition.device.type == "cpu" or question not in known or _ignore_cached.get():
            known[question] = bool(on_host(condition))
            return known[question]
        expected = known[question]
        self.add((condition != expected)[None], lambda _: _MisjudgedError(f"{question} is not {expected} any more"))
        return expected

    def raise_first(self) -> None:
        """Raise the error of the first condition that holds, in the order in which they were added."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        # A model may be spread over several devices; their conditions meet on one of them, and never on the host, where
        # copies that are not waited for would be read too early.
        devices = [condition.device for condition, _ in pending]
        device = next((one for one in devices if one.type != "cpu"), devices[0])
        bad = torch.cat([on_device(condition, device) for condition, _ in pending])
        host = on_host(bad)
        if not host.any():
            return
        for part, (_, error) in zip(host.split([len(c) for c, _ in pending]), pending, strict=True):
            for sample in part.nonzero().flatten().tolist():
                found = error(sample)
                if found is not None:
                    raise found


def check_images(images: Tensor, checks: Checks) -> None:
    """Have NaN and infinite values of images found."""

    def error(sample: int) -> Exception | None:
        if torch.isfinite(images[sample]).all():
            return None  # only their sum overflowed
        return NonFiniteError(f"image {sample} of the batch has NaN or infinite values; expected finite numbers")

    checks.add(~torch.isfinite(finite(images)), error)


def check_activations(name: str, activations: Tensor, checks: Checks) -> None:
    """Have NaN and infinite values of a layer found."""

    def error(sample: int) -> Exception | None:
        if torch.isfinite(activations[sample]).all():
            return None
        return NonFiniteError(
            f"the activations of layer {name!r} have NaN or infinite values for image {sample} of the batch; "
            "look for the first layer that makes them (half precision may overflow: use float32 or bfloat16)"
        )

    checks.add(~torch.isfinite(finite(activations)), error)


def no_patch_gradient(name: str, _sample: int) -> CaptureError:
    """Say that the score does not depend on the patches behind a layer."""
    return CaptureError(
        f"no gradient reaches the patch tokens of layer {name!r}: behind it the score depends on the class token "
        "alone; choose the last block's input normalization, or target_layers=None to have it found"
    )

"""Deferred checks: flags stay on the device and are read by the host once, at the end of a call."""

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
from gradcam_kit.functional import finite_probe, move

_P = ParamSpec("_P")
_T = TypeVar("_T")
_answers: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()
"""The cached answers of `Checks.cached_bool`, by model and question."""
_ignore_cached: ContextVar[bool] = ContextVar("_ignore_cached", default=False)


def on_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host. On CUDA, wait only for the work of the current stream."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    event.synchronize()
    return host


class _MisjudgedError(GradCamKitError):
    """A cached answer about a model turned out to be wrong in this call."""


def retry_without_cache(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate `work` to run again without cached answers when one of them turns out to be wrong."""

    @wraps(work)
    def judged(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with suppress(_MisjudgedError):
            return work(*args, **kwargs)
        token = _ignore_cached.set(True)  # outside `suppress`, so that the traceback and the tensors it holds are freed
        try:
            return work(*args, **kwargs)
        finally:
            _ignore_cached.reset(token)

    return judged


@dataclass
class Checks:
    """The conditions of one call, which the host reads once, at the end.

    Before the end, the host waits for the device only in `cached_bool`, for answers that are not cached.

    Attributes:
        model: the model, for which answers are cached.
        pending: per condition, a flag for each sample, and a function that returns the error of a sample.
    """

    model: nn.Module
    pending: list[tuple[Bool[Tensor, " n"], Callable[[int], Exception | None]]] = field(default_factory=list)

    def add(self, bad: Bool[Tensor, " n"], error: Callable[[int], Exception | None]) -> None:
        """Add a condition per sample, and a function that returns the error of a sample, or None for a false alarm."""
        if bad.numel():
            self.pending.append((bad, error))

    def cached_bool(self, question: Hashable, condition: Bool[Tensor, ""]) -> bool:
        """Return the value of a condition that depends on the structure of the model, not on the samples.

        The first call waits for the answer and caches it. On a GPU, later calls use the cached answer and verify it
        together with all other conditions. If the cached answer is wrong, `retry_without_cache` runs the work again.
        """
        known = _answers.setdefault(self.model, {})
        if condition.device.type == "cpu" or question not in known or _ignore_cached.get():
            known[question] = bool(on_host(condition))
            return known[question]
        expected = known[question]
        self.add((condition != expected)[None], lambda _: _MisjudgedError(f"{question} is no longer {expected}"))
        return expected

    def raise_first(self) -> None:
        """Raise the error of the first condition that holds, in the order in which they were added."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        # A model may be spread over several devices. Gather the conditions on one of them, never on the host, where
        # asynchronous copies would be read too early.
        devices = [condition.device for condition, _ in pending]
        device = next((one for one in devices if one.type != "cpu"), devices[0])
        bad = torch.cat([move(condition, device) for condition, _ in pending])
        host = on_host(bad)
        if not host.any():
            return
        for part, (_, error) in zip(host.split([len(c) for c, _ in pending]), pending, strict=True):
            for sample in part.nonzero().flatten().tolist():
                found = error(sample)
                if found is not None:
                    raise found


def check_images(images: Tensor, checks: Checks) -> None:
    """Add the check that images are finite."""

    def error(sample: int) -> Exception | None:
        if torch.isfinite(images[sample]).all():
            return None  # a false alarm: only the sum of the values overflowed
        return NonFiniteError(f"image {sample} of the batch has NaN or infinite values; expected finite numbers")

    checks.add(~torch.isfinite(finite_probe(images)), error)


def check_activations(name: str, activations: Tensor, checks: Checks) -> None:
    """Add the check that the activations of a layer are finite."""

    def error(sample: int) -> Exception | None:
        if torch.isfinite(activations[sample]).all():
            return None
        return NonFiniteError(
            f"the activations of layer {name!r} have NaN or infinite values for image {sample} of the batch; "
            "look for the first layer that produces them (half precision may overflow: use float32 or bfloat16)"
        )

    checks.add(~torch.isfinite(finite_probe(activations)), error)


def no_patch_gradient(name: str, _sample: int) -> CaptureError:
    """Return the error for a score that does not depend on the patch tokens of a layer."""
    return CaptureError(
        f"no gradient reaches the patch tokens of layer {name!r}: after it, the score depends only on the class "
        "token; choose the input normalization of the last block, or target_layers=None, which chooses "
        "it"
    )

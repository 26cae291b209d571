"""find_nonfinite: which module made the first NaN or infinity, forward and backward, and from what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from gradcam_kit.capture import Observation, check_observable, observe
from gradcam_kit.diagnostics.magnitudes import Seen
from gradcam_kit.diagnostics.operators import Place, Recorded
from gradcam_kit.diagnostics.tracing import OUTSIDE, Tracer
from gradcam_kit.errors import NonFiniteError

_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """Where the first NaN or infinity appeared.

    Attributes:
        layer: dotted name of the module; "" for the whole model and for what lies outside of any module.
        kind: "nan" or "inf".
        phase: "forward" or "backward".
        cause: "input", "parameter NAME", "buffer NAME", "computed here" or "outside of any module".
        path: which tensor it was: `layer[0]` of an output, or the name of a parameter whose gradient it is.
        count: how many values of the tensor are not finite.
        sample: the first sample of the batch with such a value; None where samples cannot be told.
        trail: the last modules with the largest magnitudes of input and output, so that an overflow is seen coming; in
            the backward pass those of the gradients that arrived and were passed on.
        operator: the operator that made it, such as "div"; in the backward pass the node of autograd, such as
            "SqrtBackward0". "" where it is not known; in the forward pass that takes `detail=True`.
        line: file, line and code that called the operator, with `detail=True`; else "".
    """

    layer: str
    kind: str
    phase: str
    cause: str
    path: str
    count: int
    sample: int | None
    trail: tuple[Seen, ...] = field(default=(), repr=False)
    operator: str = ""
    line: str = ""

    def __str__(self) -> str:
        where = f"layer {self.layer!r}" if self.layer else "the model itself" if self.cause != OUTSIDE else OUTSIDE
        cause = "" if self.cause == OUTSIDE else f" ({self.cause})"
        sample = "" if self.sample is None else f", first in sample {self.sample}"
        steps = "; ".join(map(str, self.trail[-_SHOWN:]))
        before = f". Before it: {steps}" if steps else ""
        value = "NaN" if self.kind == "nan" else "infinity"
        found = f"{self.count} values of {self.path}{sample}"
        made = f", by {self.operator}{f' in {self.line}' if self.line else ''}" if self.operator else ""
        return f"first {value} in the {self.phase} pass: {where}{cause}{made}, {found}{before}"


class Origins:
    """What `find_nonfinite` found: `forward` and `backward` are None or an `Origin`."""

    def __init__(self) -> None:
        self.forward: Origin | None = None
        self.backward: Origin | None = None
        self.notes: list[str] = []

    def __bool__(self) -> bool:
        return self.forward is not None or self.backward is not None

    def __str__(self) -> str:
        found = [str(origin) for origin in (self.forward, self.backward) if origin is not None]
        return "\n".join(found) or "all values were finite"


@contextmanager
def find_nonfinite(model: Any, *, raise_error: bool = True, detail: bool = False) -> Iterator[Origins]:
    """Watch every module, and name the one that makes the first NaN or infinity.

    A module is the origin if its inputs are finite and its output is not; in the backward pass, if the gradients at its
    output are finite and the gradient that it passes on is not. Functions between modules belong to the module around
    them. -inf that a mask holds, or that goes into a softmax, is no finding.

    Args:
        model: any model; nothing of it is changed.
        raise_error: raise at the first one, inside the forward or the backward pass; False only collects.
        detail: also name operator and line in the forward pass: the guilty module runs once more on copies of its
            inputs, which are made in front of every module. Buffers and random states are put back; what else a
            `forward` changes, such as a counter, changes twice.

    Raises:
        NonFiniteError: the first NaN or infinity; its text names the layer and the cause.
        InputError: a model whose modules cannot be observed.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> with find_nonfinite(model, raise_error=False) as origin:
        ...     _ = model(torch.tensor([[1.0, float("nan")]]))
        >>> origin.forward.cause
        'input'
    """
    inner = check_observable(model)
    modules = dict(inner.named_modules())
    origins = Origins()
    finder = _Finder(origins, raise_error)
    tracer = Tracer(inner, finder, detail)
    with observe(model, modules, tracer, enter=True) as observation:
        tracer.observation = finder.observation = observation
        origins.notes = observation.notes
        try:
            yield origins
        finally:
            tracer.forget()
            finder.observation = None


class _Finder:
    """Turns what the tracer meets first into an origin."""

    def __init__(self, origins: Origins, raise_error: bool) -> None:
        self.origins, self.raise_error = origins, raise_error
        self.observation: Observation | None = None

    def forward(
        self,
        layer: str,
        module: nn.Module | None,
        tensor: Tensor,
        path: str,
        trail: Sequence[Seen],
        cause: str | None,
        recorded: Recorded | None,
    ) -> None:
        if self.origins.forward is None:
            cause = cause or _cause(module)
            found = _origin(layer, "forward", cause, path, tensor, trail)
            if recorded is not None and module is not None and cause == "computed here":
                place = self._again(module, recorded, found.kind)
                found = replace(found, operator=place.operator, line=place.line)
            self.origins.forward = found
            if self.raise_error:
                raise NonFiniteError(str(self.origins.forward))

    def _again(self, module: nn.Module, recorded: Recorded, kind: str) -> Place:
        """Find the operator, unobserved."""
        assert self.observation is not None
        paused, self.observation.paused = self.observation.paused, True
        try:
            return recorded.find(module, kind)
        finally:
            self.observation.paused = paused

    def backward(self, layer: str, tensor: Tensor, path: str, trail: Sequence[Seen], cause: str, operator: str) -> None:
        if self.origins.backward is None:
            found = _origin(layer, "backward", cause, path, tensor, trail)
            self.origins.backward = replace(found, operator=operator)
            # After a forward origin the backward pass only carries it on.
            if self.raise_error and self.origins.forward is None:
                raise NonFiniteError(str(self.origins.backward))


def _origin(layer: str, phase: str, cause: str, path: str, tensor: Tensor, trail: Sequence[Seen]) -> Origin:
    tensor = tensor.detach()
    bad = ~tensor.isfinite()
    rows = bad.flatten(1).any(1) if bad.ndim > 1 else bad
    first = int(rows.nonzero()[0]) if rows.ndim == 1 and bool(rows.any()) else None
    kind = "nan" if bool(tensor.isnan().any()) else "inf"
    return Origin(layer, kind, phase, cause, path, int(bad.sum()), first, tuple(trail))


def _cause(module: nn.Module | None) -> str:
    """Whether the module's own parameters or buffers are not finite."""
    if module is not None:
        for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
            for name, tensor in named:
                if tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
                    return f"{kind} {name}"
    return "computed here"

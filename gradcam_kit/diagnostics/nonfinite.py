"""Find the module that produced the first NaN or infinity in a forward or backward pass, and the cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gradcam_kit.capture import Observation, check_observable, is_spread, observe
from gradcam_kit.diagnostics.magnitudes import Seen
from gradcam_kit.diagnostics.operators import Place, Recorded
from gradcam_kit.diagnostics.origins import Origin, Origins, cause_of, origin_of
from gradcam_kit.diagnostics.tracing import Tracer
from gradcam_kit.errors import NonFiniteError


@contextmanager
def find_nonfinite(model: Any, *, raise_error: bool = True, detail: bool = False) -> Iterator[Origins]:
    """Watch every module, and name the one that produces the first NaN or infinity.

    A module is the origin if its inputs are finite and its output is not; in the backward pass, if the gradients at its
    output are finite and the gradient that it passes on is not. Functions between modules are attributed to the
    enclosing module. -inf in a mask or in the input of a softmax is not reported. A non-finite gradient that is set to
    zero before it reaches a parameter or an input is only mentioned in `notes`.

    Of a loss outside the model, only the gradient is observed, not the value. For example, the logarithm of a negative
    output is NaN but has a finite gradient: test `torch.isfinite(loss)`, or use `check_loss`.

    Args:
        model: any model; it is not changed.
        raise_error: raise at the first NaN or infinity, inside the forward or backward pass; False only records it.
        detail: also name the operator and the line of code, in the forward pass. Inputs are copied before each module
            runs, and the module at fault runs once more on the copies. Buffers and random states are restored; anything
            else that a `forward` changes, such as a counter, changes twice.

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
            harmless = tracer.gradients.unconfirmed()
            if harmless is not None and not origins:
                origins.notes.append(f"No parameter or input received this gradient, so it is harmless: {harmless}")
            tracer.forget()
            finder.observation = None


class _Finder:
    """Turns the first non-finite value that the tracer reports into an origin."""

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
            cause = cause or cause_of(module)
            found = origin_of(layer, "forward", cause, path, tensor, trail)
            if module is not None and any(map(is_spread, module.parameters())):
                self.origins.notes.append(
                    "Parameters are spread over processes: the cause is determined from the local shards, so look at "
                    "the other ranks, too."
                )
            if recorded is not None and module is not None and cause == "computed here":
                place = self._again(module, recorded, found.kind)
                found = replace(found, operator=place.operator, line=place.line)
            self.origins.forward = found
            if self.raise_error:
                raise NonFiniteError(str(self.origins.forward))

    def _again(self, module: nn.Module, recorded: Recorded, kind: str) -> Place:
        """Find the operator by running the module again, without observing this run."""
        assert self.observation is not None
        paused, self.observation.paused = self.observation.paused, True
        try:
            return recorded.find(module, kind)
        finally:
            self.observation.paused = paused

    def suspect(
        self, layer: str, tensor: Tensor, path: str, trail: Sequence[Seen], cause: str, operator: str
    ) -> Origin:
        return origin_of(layer, "backward", cause, path, tensor, trail, operator)

    def backward(self, origin: Origin) -> None:
        if self.origins.backward is None:
            self.origins.backward = origin
            # After a forward origin, the backward pass only propagates it.
            if self.raise_error and self.origins.forward is None:
                raise NonFiniteError(str(origin))

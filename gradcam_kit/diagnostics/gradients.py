"""Watch, clip or smooth gradients of layers, parameters and tensors for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import (
    Call,
    Hooks,
    Observation,
    Observer,
    check_observable,
    holding_hooks,
    observe,
    select_layers,
    unobservable,
)
from gradcam_kit.diagnostics.gradient_records import GradientRecords
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.errors import InputError, OptionError, kind_of
from gradcam_kit.options import finite_number, non_negative


class _Outputs(Observer):
    def __init__(self, records: GradientRecords) -> None:
        self.records = records
        self.observation: Observation | None = None
        self.had_graph: set[str] = set()

    def begin(self, step: int, args: Any, kwargs: Any) -> None:
        self.had_graph.clear()

    def leave(self, call: Call) -> None:
        for name, leaf in named_leaves(call.name, call.output):
            if unobservable(leaf) is not None or not leaf.requires_grad or leaf.is_leaf or self.observation is None:
                continue
            if call.recomputed and name in self.had_graph:
                continue
            self.had_graph.add(name)
            self.observation.attach.on_gradient(leaf, self._adding(name))

    def _adding(self, name: str) -> Any:
        def add(gradient: Tensor) -> None:
            self.records.record(name).add(gradient)

        return add


@contextmanager
def monitor_gradients(model: Any, layers: Any = None) -> Iterator[GradientRecords]:
    """Watch the gradients of parameters and of layer outputs inside the block, without side effects.

    Args:
        model: any model.
        layers: a dotted name, a wildcard, a module, a type, or a sequence of these; None = the outputs of all leaf
            modules, and all parameters.

    Yields:
        A mapping: `gradients[name].norm` is the norm of the last gradient at the output of a layer, or of a parameter's
        `.grad` after the last backward pass, which adds up over passes unless it is reset.

    Raises:
        LayerNotFoundError: a pattern that matches no module.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with monitor_gradients(model) as gradients:
        ...     model(torch.ones(4, 2)).sum().backward()
        >>> gradients["bias"].norm
        4.0
    """
    inner = check_observable(model)
    selected = select_layers(inner, layers, model)
    own = _parameters(inner, [inner] if layers is None else selected.values())
    records = GradientRecords(selected, own)
    outputs = _Outputs(records)
    with observe(model, selected, outputs) as observation:
        outputs.observation = observation
        for name, parameter in own.items():
            observation.attach.on_accumulation(parameter, _watching(records, name))
        try:
            yield records
        finally:
            outputs.observation = None


def _watching(records: GradientRecords, name: str) -> Any:
    def watch(parameter: Tensor) -> None:
        if parameter.grad is not None and parameter.grad.layout == torch.strided:
            records.record(name).add(parameter.grad)

    return watch


@contextmanager
def clip_gradients(
    target: Any, layers: Any = None, *, max_norm: float | None = None, value: float | None = None
) -> Iterator[None]:
    """Clip gradients in every backward pass inside the block.

    Args:
        target: a model, whose parameters in `layers` are clipped together when a backward pass ends; or one or several
            tensors. Leaf tensors are clipped like parameters, the gradient of any other tensor separately.
        layers: for a model, a dotted name, a wildcard, a module, a type, or a sequence of these; None = all of its
            parameters.
        max_norm: scale the gradients to a joint norm of at most this value, as `torch.nn.utils.clip_grad_norm_` does.
        value: limit each entry to [-value, value].

    Raises:
        OptionError: neither or both of `max_norm` and `value`, or a negative number.
        LayerNotFoundError: a pattern that matches no module.
        InputError: `target` is neither a model nor tensors, or has nothing that requires gradients.
    """
    if (max_norm is None) == (value is None):
        raise OptionError("clip_gradients takes either max_norm= or value=; pass exactly one of them")
    limit = non_negative("value" if max_norm is None else "max_norm", value if max_norm is None else max_norm)

    def clipped(gradient: Tensor) -> Tensor:
        if max_norm is None:
            return gradient.clamp(-limit, limit)
        factor: Tensor = (limit / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
        return gradient * factor

    with ExitStack() as stack:
        attach = stack.enter_context(holding_hooks(every_thread=True))
        tensors, parameters = _targets(target, layers)
        for tensor in tensors:
            attach.on_gradient(tensor, clipped)
        if parameters:
            stack.callback(_clipping(attach, parameters, limit, is_norm=max_norm is not None))
        yield


def _clipping(attach: Hooks, parameters: list[Tensor], limit: float, *, is_norm: bool) -> Any:
    """Clip parameters when a backward pass ends; return a function that clips them if that has not happened yet."""
    waiting: list[bool] = []

    @torch.no_grad()
    def clip() -> None:
        if waiting:
            waiting.clear()
            held = [own for own in parameters if own.grad is not None]
            if is_norm:
                nn.utils.clip_grad_norm_(held, limit)
            else:
                nn.utils.clip_grad_value_(held, limit)

    def arrived(parameter: Tensor) -> None:
        if not waiting:
            waiting.append(True)
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(clip)  # runs when all gradients of this backward pass have arrived

    for parameter in parameters:
        attach.on_accumulation(parameter, arrived)
    return clip


@contextmanager
def smooth_gradients(target: Any, layers: Any = None, *, decay: float = 0.9) -> Iterator[None]:
    r"""Replace each gradient with its moving average over the backward passes inside the block.

    The average of the gradients g of a tensor is $s \leftarrow d s + (1 - d) g$. As in Adam, it is divided by $1 - d^t$
    after t gradients, so that the first average is the first gradient.

    Args:
        target: a tensor, a sequence of tensors, or a model, whose parameters in `layers` are smoothed.
        layers: for a model, a dotted name, a wildcard, a module, a type, or a sequence of these; None = all of its
            parameters.
        decay: d, at least 0 (no smoothing) and below 1.

    Raises:
        OptionError: a decay outside [0, 1).
        LayerNotFoundError: a pattern that matches no module.
        InputError: `target` is neither a model nor tensors, or has nothing that requires gradients.
    """
    kind = "a number of at least 0 and below 1"
    d = finite_number("decay", decay, kind)
    if not 0 <= d < 1:
        raise OptionError(f"decay is {decay!r}; expected {kind}")
    with holding_hooks(every_thread=True) as attach:
        tensors, parameters = _targets(target, layers)
        for tensor in (*tensors, *parameters):
            attach.on_gradient(tensor, _smoothing(d))
        yield


def _smoothing(decay: float) -> Any:
    state: dict[str, Any] = {"average": None, "calls": 0}

    @torch.no_grad()
    def smooth(gradient: Tensor) -> Tensor:
        average = state["average"]
        own = gradient.detach()
        average = (1 - decay) * own if average is None else decay * average + (1 - decay) * own
        state["average"], state["calls"] = average, state["calls"] + 1
        corrected: Tensor = average / (1 - decay ** state["calls"])
        return corrected

    return smooth


def _parameters(model: nn.Module, modules: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Return the trainable parameters of these modules, by their names in the model."""
    held = {id(own) for module in modules for own in module.parameters()}
    return {name: own for name, own in model.named_parameters() if id(own) in held and own.requires_grad}


def _targets(target: Any, layers: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the intermediate tensors of a target, and its leaf tensors or parameters."""
    if isinstance(target, nn.Module):
        inner = check_observable(target)
        modules = [inner] if layers is None else select_layers(inner, layers, target).values()
        parameters = list(_parameters(inner, modules).values())
        if not parameters:
            raise InputError("the chosen layers have no trainable parameters; choose layers with weights")
        return [], parameters
    tensors = list(target) if isinstance(target, list | tuple) else [target]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"a target is {kind_of(tensor)}; expected a model, a tensor or a sequence of tensors")
        if not tensor.requires_grad:
            raise InputError(
                f"a tensor of shape {tuple(tensor.shape)} does not require gradients; call requires_grad_() first"
            )
    return [own for own in tensors if not own.is_leaf], [own for own in tensors if own.is_leaf]

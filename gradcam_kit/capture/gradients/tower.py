"""Call one module with any inputs, such as token indices, and compute gradients at its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.model.layers import select_layers
from gradcam_kit.capture.model.state import check_model, untouched
from gradcam_kit.capture.model.trees import map_output
from gradcam_kit.errors import CaptureError

Fits = Callable[[Tensor], bool]


@dataclass
class TowerPass:
    """One forward pass of a module, with a graph from its layers to its output.

    Attributes:
        output: output of the module, with its graph.
        recorded: maps the name of each layer to its tensor in the graph, in the order of execution.
        passed_on: maps the name of each layer to the clone of this tensor that the module uses.
        calls: maps the name of each layer to the number of its calls.
    """

    output: Any = None
    recorded: dict[str, Tensor] = field(default_factory=dict)
    passed_on: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def gradients(self, scores: Float[Tensor, " n"], *others: Tensor) -> list[Tensor | None]:
        """Return d score / d tensor for `others` and the recorded tensors, or None where there is no dependence."""
        wanted = [*others, *self.recorded.values()]
        graph = [tensor for tensor in wanted if tensor.requires_grad]
        if not graph or not scores.requires_grad:
            return [None] * len(wanted)
        found = torch.autograd.grad(scores.sum(), graph, retain_graph=True, allow_unused=True)
        by_id = {id(tensor): gradient for tensor, gradient in zip(graph, found, strict=True)}
        return [by_id.get(id(tensor)) for tensor in wanted]

    def is_output(self, name: str) -> bool:
        """Whether the output of the module contains this layer's tensor itself."""
        found = [self.passed_on[name] is self.output]
        map_output(lambda leaf: found.append(leaf is self.passed_on[name]), self.output)
        return any(found)


@contextmanager
def tower_pass(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layers: Any,
    fits: Fits,
    device: torch.device,
    *,
    cut: bool = True,
) -> Iterator[TowerPass]:
    """Run a module once, in eval mode with frozen parameters, record its layers, and restore the module afterwards.

    Args:
        module: any module.
        args: positional arguments of the module.
        kwargs: keyword arguments of the module.
        layers: a name, wildcard, module or type, or None for all modules inside.
        fits: predicate for tensors; the first tensor of a layer's output that fits is recorded.
        device: device of the inputs.
        cut: start the graph at the first recorded tensor; False if the inputs already have a graph.

    Raises:
        CaptureError: a named layer did not run, ran more than once, or did not return a tensor that fits.
        LayerNotFoundError: the module does not have a named layer.
    """
    inner = check_model(module)
    chosen = {name: own for name, own in inner.named_modules() if name} if layers is None else None
    named = chosen if chosen is not None else select_layers(inner, layers, module)
    seen = TowerPass()
    with untouched(inner, device), torch.enable_grad(), holding_hooks() as attach:
        for name, own in named.items():
            attach.after(own, _recording(seen, name, fits, cut))
        seen.output = inner(*args, **kwargs)
        for name, count in seen.calls.items():
            if count > 1:
                if chosen is None:
                    raise CaptureError(
                        f"layer {name!r} of {type(inner).__name__} ran {count} times in one pass; name a layer that "
                        "runs once"
                    )
                seen.recorded.pop(name, None)
        if chosen is None and (missing := [name for name in named if name not in seen.recorded]):
            ran = "returned no tensor that fits" if missing[0] in seen.calls else "did not run"
            raise CaptureError(f"layer {missing[0]!r} of {type(inner).__name__} {ran}; choose another layer")
        yield seen


def _recording(seen: TowerPass, name: str, fits: Fits, cut: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        seen.calls[name] = seen.calls.get(name, 0) + 1
        if seen.calls[name] > 1:
            return None
        is_found = False

        def record(tensor: Tensor) -> Tensor:
            nonlocal is_found
            if is_found or not tensor.is_floating_point() or not fits(tensor):
                return tensor
            is_found = True
            own = tensor.detach().requires_grad_() if cut and not seen.recorded else tensor
            seen.recorded[name] = own
            # Pass on a clone, so that in-place operations cannot change the record.
            seen.passed_on[name] = own.clone()
            return seen.passed_on[name]

        changed = map_output(record, output)
        return changed if is_found else None

    return hook

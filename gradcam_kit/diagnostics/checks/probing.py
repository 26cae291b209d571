"""Probe a model: run it twice, run its first samples alone, and look for gradients between samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture import Call, Observer, check_observable, observe, select_layers, unobservable
from gradcam_kit.diagnostics.checks.batches import call, main_input, part, samples
from gradcam_kit.diagnostics.checks.steps import DROPOUTS
from gradcam_kit.diagnostics.checks.tasks import outputs_of
from gradcam_kit.diagnostics.findings import Finding, Level
from gradcam_kit.errors import GradCamKitError, raise_interruption

_CONSTANT = 1e-8  # minimum variance over samples of outputs that are not constant, as a share of their mean square
ROUNDING = 1e-3
"""Largest difference of outputs that may be due to rounding, as a share of the largest output."""
_ALIKE = 1e-6  # largest difference between outputs that count as equal, as a share of their largest value
_LEAKED = 1e-6  # largest gradient at other samples that is not a leak, as a share of the sample's own gradient
_PROBED = 8  # maximum number of samples at which gradients are computed


class Probe:
    """A model and its outputs in two passes over the same batch.

    Attributes:
        model: the model, in the modes in which it is judged.
        inputs: the inputs of the batch.
        n: number of samples.
        leaves: floating-point tensors in the output of the first pass.
        again: the same tensors of the second pass.
        scores: the tensor of scores in the output of the first pass; None if there is no such tensor, or more than one.
        per_sample: whether `scores` has one row per sample.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model, self.inputs, self.n = model, inputs, samples(inputs)
        with torch.no_grad():
            output = call(model, inputs)
            self.again = floating_leaves(call(model, inputs))
        self.leaves = floating_leaves(output)
        self.scores = outputs_of(output)
        self.per_sample = self.scores is not None and self.scores.ndim > 0 and len(self.scores) == self.n

    def findings(self) -> list[Finding]:
        """Return the findings that do not depend on labels."""
        broken = sum(int((~leaf.isfinite()).sum()) for leaf in self.leaves)
        if broken:
            values = sum(leaf.numel() for leaf in self.leaves)
            return [
                Finding(
                    "bad",
                    "nonfinite",
                    "",
                    f"{broken:,} of {values:,} output values are NaN or infinite",
                    float(broken),
                    0.0,
                    self.n,
                    "Call find_nonfinite(model) to find the module that produces the first of these values",
                    "definition",
                )
            ]
        found = []
        difference = difference_of(self.leaves, self.again)
        if difference > ROUNDING:
            layer = awake_dropout(self.model)
            named = f": {layer!r} ({type(self.model.get_submodule(layer)).__name__}) is in train mode" if layer else ""
            text = f"the model's outputs for the same batch differ{named}"
            found.append(random_finding("bad", difference, self.n, text, layer))
        if self.per_sample and self.n > 1:
            found += self._constant()
            found += self._leaks(is_random=difference > ROUNDING)
        return found

    def _constant(self) -> list[Finding]:
        assert self.scores is not None
        images = main_input(self.inputs)
        if bool((images == images[:1]).all()):
            return []
        flat = self.scores.flatten(1).double()
        power = float(flat.square().mean())
        share = float(flat.var(dim=0).amax()) / power if power > 0 else 0.0
        if share >= _CONSTANT:
            return []
        layer = first_constant_layer(self.model, self.inputs)
        where = f"; layer {layer!r} is the first whose output is the same for every input" if layer else ""
        return [
            Finding(
                "bad",
                "constant-output",
                layer,
                f"The outputs are the same for each input{where}",
                share,
                _CONSTANT,
                self.n,
                "The inputs do not reach the outputs: look for dead or saturated units, a layer whose weights are 0, "
                "or a learning rate that made the model collapse",
                "convention: variance over samples as a share of the mean square",
            )
        ]

    def _leaks(self, is_random: bool) -> list[Finding]:
        alone = 0.0 if is_random else self._alone()
        gradient = self._foreign_gradient()
        if alone <= ROUNDING and gradient <= _LEAKED:
            return []
        value, limit = (alone, ROUNDING) if alone > ROUNDING else (gradient, _LEAKED)
        training = [name for name, one in self.model.named_modules() if is_norm(one) and one.training]
        where = training[0] if training else ""
        named = f": {where} ({type(self.model.get_submodule(where)).__name__}) is in train mode" if where else ""
        text = f"The output for a sample depends on the other samples of its batch{named}"
        return [leak_finding("bad", where, text, value, limit, self.n)]

    def _alone(self) -> float:
        """Return how much the outputs of the first one or two samples change if they run as a separate batch."""
        assert self.scores is not None
        for size in (1, 2):
            if size >= self.n:
                break
            try:
                with torch.no_grad():
                    alone = outputs_of(call(self.model, part(self.inputs, slice(size))))
            except (RuntimeError, ValueError):  # batch normalization can reject a single sample in train mode
                continue
            if alone is not None and alone.shape[1:] == self.scores.shape[1:] and len(alone) == size:
                return difference_of([alone], [self.scores[:size]])
        return 0.0

    def _foreign_gradient(self) -> float:
        """Return the gradient of the first output at other samples, as a share of its gradient at its own sample."""
        inputs = part(self.inputs, slice(_PROBED))
        images = main_input(inputs)
        if not images.is_floating_point() or len(images) < 2:
            return 0.0
        try:
            with torch.enable_grad():
                leaf = images.detach().clone().requires_grad_()
                scores = outputs_of(call(self.model, _with_images(inputs, images, leaf)))
                if scores is None or not scores.requires_grad:
                    return 0.0
                own = scores[0].flatten()
                weights = torch.linspace(1, 2, len(own), device=own.device, dtype=own.dtype)
                [gradient] = torch.autograd.grad((own * weights).sum(), leaf, allow_unused=True)
        except RuntimeError as error:  # an operation has no derivative, such as recurrent kernels in eval mode
            raise_interruption(error)
            return 0.0
        if gradient is None or not bool(gradient.isfinite().all()):
            return 0.0
        at_own = float(gradient[0].abs().amax())
        return float(gradient[1:].abs().amax()) / at_own if at_own > 0 else 0.0


class _Constant(Observer):
    """Finds the first layer whose inputs differ between samples, but whose outputs do not."""

    def __init__(self, n: int) -> None:
        self.n, self.layer = n, ""
        self.differs: list[bool] = []

    def enter(self, call: Call) -> None:
        # The input is tested before the layer runs, because the layer may change it in place.
        self.differs.append(self._is_alike(call.args[0] if call.args else None) is False)

    def leave(self, call: Call) -> None:
        differed = self.differs.pop() if self.differs else False
        if not self.layer and differed and self._is_alike(call.output):
            self.layer = call.name

    def _is_alike(self, value: Any) -> bool | None:
        """Whether all samples are the same up to rounding; None for values without a sample axis."""
        if unobservable(value) is not None or value.ndim < 1 or len(value) != self.n:
            return None
        flat = value.detach().flatten(1).double() if value.ndim > 1 else value.detach().double()[:, None]
        return bool((flat.amax(0) - flat.amin(0) <= _ALIKE * flat.abs().amax()).all())


def first_constant_layer(model: nn.Module, inputs: Any) -> str:
    """Return the first layer that maps different samples to equal outputs; "" if none does, or none can be observed."""
    observer = _Constant(samples(inputs))
    try:
        layers = select_layers(check_observable(model), None, model)
        with torch.no_grad(), observe(model, layers, observer, enter=True):
            call(model, inputs)
    except GradCamKitError:  # layers cannot be observed, for example those of a scripted model
        return ""
    return observer.layer


def random_finding(level: Level, difference: float, n: int, text: str, layer: str = "") -> Finding:
    """Return the finding about outputs that differ from pass to pass."""
    return Finding(
        level,
        "random-eval",
        layer,
        text[0].upper() + text[1:],
        difference,
        ROUNDING,
        n,
        "Call model.eval() before evaluation; if it was called, use nn.Dropout or pass training=self.training to "
        "functional.dropout",
        "definition: two passes over one batch agree",
    )


def leak_finding(level: Level, layer: str, text: str, value: float, limit: float, n: int) -> Finding:
    """Return the finding about outputs that depend on other samples."""
    return Finding(
        level,
        "batch-leak",
        layer,
        text,
        value,
        limit,
        n,
        "Call model.eval() after all .train() calls; if a module itself computes over the batch axis (axis "
        "0), its reshape or normalization has a bug",
        "definition: a sample gets the same output alone as in a batch",
    )


def floating_leaves(output: Any) -> list[Tensor]:
    """Return all floating-point tensors of an output."""
    leaves = tree_leaves(dict(output) if hasattr(output, "keys") else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference_of(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the largest difference between paired tensors, as a share of the largest value; 1 if shapes differ."""
    if [leaf.shape for leaf in a] != [leaf.shape for leaf in b]:
        return 1.0
    most = 0.0
    for one, other in zip(a, b, strict=True):
        if one.numel():
            scale = float(one.abs().amax())
            change = float((one.double() - other.double()).abs().amax())
            most = max(most, change / scale if scale > 0 else float(change > 0))
    return most


def _with_images(inputs: Any, images: Tensor, leaf: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return leaf
    if isinstance(inputs, dict):
        return {key: leaf if value is images else value for key, value in inputs.items()}
    return tuple(leaf if value is images else value for value in inputs)


def awake_dropout(model: nn.Module) -> str:
    """Return the name of the first dropout module in train mode; "" if there is none."""
    return next((name for name, one in model.named_modules() if is_dropout(one) and one.training), "")


def is_dropout(module: nn.Module) -> bool:
    """Whether a module without children drops activations, according to the name of its class."""
    is_leaf = next(module.children(), None) is None
    return is_leaf and ("drop" in type(module).__name__.lower() or type(module).__name__ in DROPOUTS)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes over the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)

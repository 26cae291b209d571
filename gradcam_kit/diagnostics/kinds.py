"""Properties of modules for verdicts: whether outputs can saturate or die, and the number of input channels."""

from __future__ import annotations

from torch import Tensor, nn

_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid)
_TANHS = (nn.Tanh, nn.Hardtanh)
_SIGMOID_FLAT = (0.0127, 0.9873)  # outside this range, the slope of sigmoid is below 5 % of its maximum
_TANH_FLAT = 0.9747  # the same for the magnitude of tanh
FEW_INPUTS = 8


def activation_of(module: nn.Module) -> str | None:
    """Return "relu", "sigmoid" or "tanh" for activations that can die or saturate, None for everything else."""
    if isinstance(module, nn.ReLU6):  # a subclass of Hardtanh
        return "relu"
    if isinstance(module, _RECTIFIERS) or (isinstance(module, nn.Threshold) and module.value <= 0):
        return "relu"
    if isinstance(module, _SIGMOIDS):
        return "sigmoid"
    return "tanh" if isinstance(module, _TANHS) else None


def flat_beyond(module: nn.Module) -> tuple[float, float] | None:
    """Return the outputs below and above which the slope is less than 5 % of its maximum; None if there are none."""
    if isinstance(module, nn.ReLU6):
        return None
    if isinstance(module, nn.Hardtanh):
        return _inside(module.min_val, module.max_val)
    if isinstance(module, nn.Hardsigmoid):
        return _inside(0.0, 1.0)
    if isinstance(module, nn.Sigmoid):
        return _SIGMOID_FLAT
    return (-_TANH_FLAT, _TANH_FLAT) if isinstance(module, nn.Tanh) else None


def _inside(low: float, high: float) -> tuple[float, float]:
    margin = 1e-6 * (high - low)  # the ends themselves are flat
    return low + margin, high - margin


def inputs_per_unit(module: nn.Module) -> int | None:
    """Return the number of input channels of a convolution or linear layer; None for other modules."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return int(module.in_channels)
    return int(module.in_features) if isinstance(module, nn.Linear) else None


def own_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a module, if it has one."""
    weight = module._parameters.get("weight")
    return weight if isinstance(weight, Tensor) else None

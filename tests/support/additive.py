"""What is added behind a layer: with it, activations times balanced gradients must make the whole score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture.balance.backward import balanced
from gradcam_kit.targets.outputs import find_logits

ADDED = re.compile(
    r"bias$|pos_embed|position|cls_token|class_embedding|class_token|reg_token|register_tokens|dist_token|cls_pos"
)
"""Parameters that are added; all others multiply."""
GATED = re.compile(r"relative_position|rel_pos|cpb_mlp|position_bias_mlp|logit_scale|temperature|token_projection")
"""Parameters inside of attention or of an encoding, which are not added themselves."""


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with parameters as after a training: nothing is zero but the means of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.running_mean.zero_()  # it would be added too
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.double().eval()


def score_and_shares(
    model: nn.Module, images: Tensor, layer: str = "", made: Sequence[str] = ()
) -> tuple[float, float]:
    """The score, and activations times balanced gradients at the input or at a layer, with all that is added behind it.

    Args:
        model: `settled`.
        images: two, because torch 2.14 differentiates batch norms of a single image wrongly in front of tokens.
        layer: where the graph begins; "" = the images.
        made: modules that make positions out of nothing.
    """
    constants: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_added = bool(ADDED.search(name)) and not GATED.search(name) and not name.startswith(tuple(made) or ("-",))
        parameter.requires_grad_(is_added)
        constants += [parameter] * is_added

    def begin(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        origins.append(first.detach().requires_grad_())
        return (origins[0], *output[1:]) if isinstance(output, tuple) else origins[0]

    def position(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        constants.append(output.detach().requires_grad_())
        return constants[-1]

    origins: list[Tensor] = [] if layer else [images.clone().requires_grad_()]
    handles = [model.get_submodule(name).register_forward_hook(position) for name in made]
    if layer:
        handles.append(model.get_submodule(layer).register_forward_hook(begin))
    try:
        output = model(origins[0] if origins else images)
    finally:
        for handle in handles:
            handle.remove()
    logits = output.pooler_output if hasattr(output, "pooler_output") else find_logits(output)
    score = logits.flatten(1)[:, 1].sum()
    leaves = [*origins, *constants]
    with balanced(score, origins):
        gradients = torch.autograd.grad(score, leaves, allow_unused=True)
    pairs = zip(leaves, gradients, strict=True)
    total = sum(float((leaf.detach() * gradient).sum()) for leaf, gradient in pairs if gradient is not None)
    return float(score.detach()), total

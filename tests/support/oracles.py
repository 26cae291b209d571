"""From every name in `METHODS` to the slow transcription that its `saliency` must equal, on a `Sample`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import reference as ref
import torch
from cases import Sample, logit, probability
from explicit_vit import attention_rollout, generic_attention, grad_eclip, legrad, vit_recipro_cam
from frozen import frozen
from torch import Tensor, nn

from gradcam_kit.draws import checksums, uniform
from gradcam_kit.methods.group_cam import group_channels

Oracle = Callable[[Sample], Any]


def activation_method(formula: Callable[..., Any], **options: Any) -> Oracle:
    """A formula of activations alone."""
    return lambda sample: formula(sample.activations, **options)


def gradient_method(formula: Callable[..., Any], **options: Any) -> Oracle:
    """A formula of activations and gradients."""
    return lambda sample: formula(sample.activations, sample.gradients, **options)


def einsum_cam(sample: Sample) -> Any:
    if sample.case.head:
        return ref.einsum_cam(sample.activations, sample.head_weight, sample.logit_gradients)
    return ref.einsum_cam_without_head(sample.activations, sample.own_weight_gradient)


def score_cam(sample: Sample, **options: Any) -> Any:
    gradients = None if options.get("ranking", "std") == "std" else sample.gradients
    rescored = replace(sample, objective=probability) if options.get("weighting") == "probability" else sample
    return ref.score_cam(sample.activations, sample.image, rescored.rescore, gradients=gradients, **options)


def ss_cam(sample: Sample, samples: int = 35, std: float = 2.0, seed: int = 0, weighting: str = "softmax") -> Any:
    generator = torch.Generator().manual_seed(seed)
    noise = std * torch.randn(samples, 1, *sample.image.shape[1:], generator=generator).double()
    return ref.ss_cam(sample.activations, sample.image, sample.rescore, noise, weighting)


def is_cam(sample: Sample, samples: int = 10, ladder: str = "linear") -> Any:
    return ref.is_cam(sample.activations, sample.image, sample.rescore, ref.is_cam_factors(samples, ladder))


def group_cam(sample: Sample, groups: int = 32, seed: int = 0) -> Any:
    """With the package's own groups, which have tests of their own."""
    members = group_channels(sample.activations[None], groups, seed)[0].tolist()
    found = [[k for k, group in enumerate(members) if group == one] for one in sorted(set(members))]
    blurred = ref.gaussian_blur(sample.image, 51, 50.0)
    rescore = replace(sample, objective=probability).rescore
    return ref.group_cam(sample.activations, sample.gradients, sample.image, blurred, rescore, found)


def sess(sample: Sample, scales: int = 12, growth: float = 2 / 7, pool: str = "mean") -> Any:
    """Windows that tile the image at every scale, the last of each axis moved inside."""
    size, corners, shapes = tuple(sample.image.shape[1:]), [], []
    for scale in range(scales):
        shape = tuple(round(length / (1 + scale * growth)) for length in size)
        starts = [
            [min(i * window, length - window) for i in range(-(-length // window))]
            for length, window in zip(size, shape, strict=True)
        ]
        for corner in product(*starts):
            corners.append(corner)
            shapes.append(shape)
    maps, probabilities = [], []
    for corner, shape in zip(corners, shapes, strict=True):
        crop = sample.image[(slice(None), *(slice(a, a + b) for a, b in zip(corner, shape, strict=True)))]
        enlarged = sample.at(np.stack([ref.upsample(channel, size) for channel in crop]))
        maps.append(ref.normalize_minmax(ref.relu(ref.grad_cam(enlarged.activations, enlarged.gradients))))
        probabilities.append(replace(enlarged, objective=probability).rescore(enlarged.image))
    return ref.sess(maps, corners, shapes, probabilities, size, pool)


def random_cam(sample: Sample, seed: int = 0) -> Any:
    drawn = torch.rand(len(sample.activations), generator=torch.Generator().manual_seed(seed))
    return ref.random_cam(sample.activations, 2 * drawn - 1)


def finer(logits: Tensor, target: int) -> Tensor:
    """`ref.finer_score` with its derivative."""
    others = ref.finer_references(logits, target)
    weights = logits.softmax(0)[others]
    return (weights * (logits[target] - logits[others])).sum() / weights.sum()


def logit_and_log_probability(logits: Tensor, target: int) -> Tensor:
    return logits[target] + logits.log_softmax(0)[target]


def explaining(objective: Callable[[Tensor, int], Tensor], oracle: Oracle) -> Oracle:
    """A method that scores plain class indices in its own way."""
    return lambda sample: oracle(replace(sample, objective=objective) if sample.objective is logit else sample)


def shapley_cam(sample: Sample) -> Any:
    return ref.shapley_cam(sample.activations, sample.gradients, sample.hessian)


@cache
def _frozen(model: nn.Module) -> nn.Module:
    return frozen(model)


def balanced_cam(sample: Sample, **options: Any) -> Any:
    """With the exact gradients of a copy of the network that has constant factors."""
    gradients = replace(sample, model=_frozen(sample.model)).gradients
    return ref.balanced_cam(sample.activations, gradients, **options)


def full_grad(sample: Sample) -> Any:
    """Pairs of bias and gradient by module, from one hook on each module that has a bias."""
    owners, biases = [], []
    for module in sample.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            own = (module.bias, module.weight, module.running_mean, module.running_var)
            biases.append(ref.batch_norm_bias(*own, module.eps))
            owners.append(module)
        elif getattr(module, "bias", None) is not None:
            biases.append(module.bias)
            owners.append(module)
    gradients = [gradient for _, gradient in sample.outputs_and_gradients(owners)]
    return ref.full_grad(sample.image, sample.image_gradient, biases, gradients)


class MeanPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def guided(sample: Sample) -> Any:
    """Guided backprop of the small networks, whose modules run one after the other."""
    leaves = [module for module in sample.model.modules() if not list(module.children())]
    pool = nn.Flatten() if getattr(sample.model, "flatten", 0) else MeanPool()
    return ref.guided_backprop([*leaves[:-1], pool, leaves[-1]], sample.image, sample.target)


def guided_grad_cam(sample: Sample) -> Any:
    coarse = ref.grad_cam(sample.activations, sample.gradients)
    return ref.guided_grad_cam(guided(sample), coarse).sum(0)


def smooth_grad_cam_plus_plus(sample: Sample, samples: int = 4, std: float = 0.3, seed: int = 0) -> Any:
    noise = torch.randn(samples, *sample.image.shape, generator=torch.Generator().manual_seed(seed))
    gradients = [sample.at(sample.image + std * draw.double()).gradients for draw in noise]
    return ref.smooth_grad_cam_plus_plus(sample.activations, gradients)


def integrated_grad_cam(sample: Sample, steps: int = 20) -> Any:
    path = [sample.at(step / steps * sample.image) for step in range(steps + 1)]
    activations, gradients = zip(*((one.activations, one.gradients) for one in path), strict=True)
    return ref.integrated_grad_cam(activations[1:], gradients[1:], activations[0])


def expected_grad_cam(sample: Sample, samples: int = 16, std: float = 0.3, seed: int = 0) -> Any:
    noise = torch.randn(samples, *sample.image.shape, generator=torch.Generator().manual_seed(seed)).double()
    blurred = torch.as_tensor(ref.gaussian_blur(sample.image, 51, 50.0))
    baselines = [blurred + std * float(np.std(sample.image.numpy())) * draw for draw in noise]
    shares = [(i + 0.5) / samples for i in range(samples)]
    points = [start + share * (sample.image - start) for start, share in zip(baselines, shares, strict=True)]
    before = [sample.at(start).activations for start in baselines]
    return ref.expected_grad_cam(sample.activations, before, [sample.at(point).gradients for point in points])


def ablation_cam(sample: Sample, channels: int | None = None) -> Any:
    kept = None if channels is None else ref.ranked_channels(sample.activations, channels)
    return ref.ablation_cam(sample.activations, sample.replay, kept)


def recipro_cam(sample: Sample, **options: Any) -> Any:
    return ref.recipro_cam(sample.activations, sample.replay, **options)


def rise(sample: Sample, masks: int = 4000, cells: int = 7, visible: float = 0.5, seed: int = 0) -> Any:
    """With the package's own random numbers, which have tests of their own; plain classes by their probability."""
    sample = replace(sample, objective=probability) if sample.objective is logit else sample
    size = tuple(sample.image.shape[1:])
    [identity] = checksums(sample.image[None])
    own = identity.expand(masks)
    drawn = uniform((cells ** len(size) + len(size),), own, seed, torch.arange(masks)).double()
    rows = [ref.rise_mask(row.numpy(), size, cells, visible) for row in drawn]
    return ref.rise(sample.image, sample.rescore, rows, visible)


ORACLES: dict[str, Oracle] = {
    "odam": gradient_method(ref.odam),
    "rise": rise,
    "cam": einsum_cam,
    "einsum-cam": einsum_cam,
    "eigen-cam": activation_method(ref.eigen_cam),
    "kpca-cam": activation_method(ref.kpca_cam),
    "fem": activation_method(ref.fem),
    "lafam": activation_method(ref.lafam),
    "random-cam": random_cam,
    "grad-cam": gradient_method(ref.grad_cam),
    "grad-cam++": gradient_method(ref.grad_cam_plus_plus),
    "refine-cam": gradient_method(ref.grad_cam_plus_plus),
    "hires-cam": gradient_method(ref.hires_cam),
    "grad-cam-elementwise": gradient_method(ref.grad_cam_elementwise),
    "balanced-cam": balanced_cam,
    "xgrad-cam": gradient_method(ref.xgrad_cam),
    "layer-cam": gradient_method(ref.layer_cam),
    "eigen-grad-cam": gradient_method(ref.eigen_grad_cam),
    "seg-eigen-cam": gradient_method(ref.seg_eigen_cam),
    "seg-xres-cam": gradient_method(ref.seg_xres_cam, window=2),
    "winsor-cam": gradient_method(ref.grad_cam),
    "finer-cam": explaining(finer, gradient_method(ref.grad_cam)),
    "shapley-cam": explaining(logit_and_log_probability, shapley_cam),
    "full-grad": full_grad,
    "guided-backprop": lambda sample: guided(sample).sum(0),
    "guided-grad-cam": guided_grad_cam,
    "smooth-grad-cam++": smooth_grad_cam_plus_plus,
    "integrated-grad-cam": integrated_grad_cam,
    "expected-grad-cam": expected_grad_cam,
    "score-cam": score_cam,
    "ablation-cam": ablation_cam,
    "recipro-cam": recipro_cam,
    "ss-cam": ss_cam,
    "is-cam": is_cam,
    "group-cam": group_cam,
    "sess": sess,
    "attention-rollout": attention_rollout,
    "generic-attention": generic_attention,
    "legrad": legrad,
    "grad-eclip": grad_eclip,
    "vit-recipro-cam": vit_recipro_cam,
}

EXCEPTIONS: dict[str, str] = {
    "d-rise": "it explains boxes: its transcription is in test_rise.py",
}
"""Methods without an oracle, and why."""

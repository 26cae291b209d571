"""Explain in words why all maps of a call are empty."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture import Capture
from gradcam_kit.methods.contract import Method, rule_of
from gradcam_kit.targets import SegmentationTarget
from gradcam_kit.types import Evidence


def cause_of_empty(cam: Method, captured: Capture, saliency: dict[str, Tensor], importance: list[Tensor]) -> str:
    """Return why all maps are empty and how to change that, judging by the captured tensors of the call.

    Args:
        cam: the method.
        captured: evidence that the pass recorded.
        saliency: the signed map of each of the method's layers.
        importance: importance of the layers, for methods that define it; otherwise empty.
    """
    silent = [name for name in saliency if not _activations(captured, name).any()]
    if silent:
        return (
            f"the activations of {', '.join(silent)} are zero everywhere, as after a dead ReLU; choose a layer before "
            "it, and check the normalization of the images and the weights"
        )
    if because := _empty_region(captured):
        return because
    rule = rule_of(cam)
    gradients = [captured.gradients[name, rule] for name in saliency if (name, rule) in captured.gradients]
    if Evidence.GRADIENTS in cam.needs and gradients and not any(bool(own.any()) for own in gradients):
        if _ignores_images(captured):
            return (
                "the score does not depend on the image, as with a head of zeros before training; load trained weights"
            )
        return (
            "no gradient reaches the layers: the score is saturated or comes after dead ReLUs; explain the logit "
            "instead of a probability, or choose a later layer"
        )
    positive = {name: bool((maps > 0).any()) for name, maps in saliency.items()}
    if all(positive.values()) and cam.fusion == "product" and not importance:
        return "the layers have positive evidence, but nowhere at the same position; explain the layers one by one"
    if any(positive.values()) and cam.fusion == "sum":
        return "some layers have positive evidence, but other layers have more negative evidence at these positions"
    if any(positive.values()):
        without = [name for name, is_positive in positive.items() if not is_positive]
        if importance:
            return "the layers with positive evidence have no weight, because their importance is not positive"
        return (
            f"there is no positive evidence at {', '.join(without) or 'some layer for each image'}, "
            "which empties the product of the layers"
        )
    if any(bool((maps < 0).any()) for maps in saliency.values()):
        return (
            "all evidence is against the explained score; to explain evidence against it, pass "
            "targets=Negative(...) of gradcam_kit.targets"
        )
    return "the maps are zero everywhere: what the method measures is the same at every position of the layers"


def _activations(captured: Capture, name: str) -> Tensor:
    record = captured.records[name]
    return record.maps([tensor.detach() for tensor in record.captured])


def _empty_region(captured: Capture) -> str | None:
    """Return why the explained region of a segmentation is empty; None if it is not, or for other targets."""
    target = captured.target
    if not isinstance(target, SegmentationTarget) or captured.scores is None or captured.scores.any():
        return None
    if target.mask is not None:
        return None if target.mask.any() else "the region of the target is empty; pass a mask that covers the object"
    if isinstance(target.classes, int):
        return f"class {target.classes} is predicted at no position; give a region: SegmentationTarget(mask, classes)"
    return "the classes are predicted at no position; give a region: SegmentationTarget(mask, classes)"


def _ignores_images(captured: Capture) -> bool:
    """Whether the output is the same for all images, and all classes have the same score."""
    leaves = [leaf for leaf in tree_leaves(captured.output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return bool(leaves) and all(
        leaf.numel() > 0 and torch.equal(leaf, leaf.flatten()[:1].expand_as(leaf)) for leaf in leaves
    )

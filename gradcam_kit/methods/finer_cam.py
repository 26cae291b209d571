"""Finer-CAM: Zhang et al., CVPR 2025, https://arxiv.org/abs/2501.11309."""

from __future__ import annotations

from gradcam_kit.capture import FinerTarget
from gradcam_kit.methods.grad_cam import GradCAM


class FinerCAM(GradCAM, name="finer-cam"):
    r"""Explain by Grad-CAM what distinguishes the class from similar classes, without the evidence that they share.

    The score is the mean of $z_c - z_d$ over the nearest classes d, weighted by their probabilities. Use this method
    for fine-grained classes, such as species of birds or models of cars. If no other class comes close, it shows little
    more than Grad-CAM. The comparison is `FinerTarget` with its defaults; for other settings pass a `FinerTarget` to
    any method.

    Example:
        >>> from gradcam_kit import FinerCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> FinerCAM(load_demo_model(), "layer4")(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    target_type = FinerTarget

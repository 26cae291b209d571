"""Finer-CAM: Zhang et al., CVPR 2025, https://arxiv.org/abs/2501.11309."""

from __future__ import annotations

from gradcam_kit.capture import FinerTarget
from gradcam_kit.methods.grad_cam import GradCAM


class FinerCAM(GradCAM, name="finer-cam"):
    """Grad-CAM of the class against the classes nearest to it, so that what they share is left out.

    The comparison is `FinerTarget` with its defaults; pass a `FinerTarget` to any method for others.
    """

    target_type = FinerTarget

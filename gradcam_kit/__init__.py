"""Where did the model look? Class activation maps for PyTorch: exact, batched, on the device, without a trace."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradcam_kit import targets
from gradcam_kit.errors import GradCamKitError, LayerNotFoundError, ShapeError
from gradcam_kit.methods import (
    CAM,
    FEM,
    KPCACAM,
    METHODS,
    AblationCAM,
    BaseCAM,
    EigenCAM,
    EigenGradCAM,
    EinsumCAM,
    Explanation,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMElementwise,
    GradCAMPlusPlus,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    IntegratedGradCAM,
    LaFAM,
    LayerCAM,
    RandomCAM,
    ReciproCAM,
    RefineCAM,
    ScoreCAM,
    SegEigenCAM,
    SegXResCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
    ViTReciproCAM,
    WinsorCAM,
    XGradCAM,
    explain_all,
)

if TYPE_CHECKING:
    from gradcam_kit.render import overlay

__version__ = "0.1.0"

# Loaded when first used, so that `import gradcam_kit` costs no more than torch.
_LAZY = {"overlay": "gradcam_kit.render"}

__all__ = [
    "CAM",
    "FEM",
    "KPCACAM",
    "METHODS",
    "AblationCAM",
    "BaseCAM",
    "EigenCAM",
    "EigenGradCAM",
    "EinsumCAM",
    "Explanation",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementwise",
    "GradCAMPlusPlus",
    "GradCamKitError",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "IntegratedGradCAM",
    "LaFAM",
    "LayerCAM",
    "LayerNotFoundError",
    "RandomCAM",
    "ReciproCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "SegXResCAM",
    "ShapeError",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "ViTReciproCAM",
    "WinsorCAM",
    "XGradCAM",
    "explain_all",
    "overlay",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'gradcam_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

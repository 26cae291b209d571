"""Class activation maps for PyTorch: exact, batched, computed on the device, without a change to the model."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gradcam_kit._version import __version__ as __version__

if TYPE_CHECKING:
    from gradcam_kit import targets
    from gradcam_kit.comparison import HeatmapLogger, analyze_mistakes, compare
    from gradcam_kit.errors import GradCamKitError, LayerNotFoundError, ShapeError
    from gradcam_kit.folder import explain_folder
    from gradcam_kit.jobs import load_run
    from gradcam_kit.methods import (
        CAM,
        DCAM,
        DRISE,
        FEM,
        ISCAM,
        KPCACAM,
        METHODS,
        ODAM,
        RISE,
        SESS,
        SSCAM,
        AblationCAM,
        AttentionRollout,
        BalancedCAM,
        BaseCAM,
        DeepFeatureFactorization,
        EigenCAM,
        EigenGradCAM,
        EigenSmooth,
        EinsumCAM,
        ExpectedGradCAM,
        Explanation,
        FinerCAM,
        FullGrad,
        GenericAttention,
        GradCAM,
        GradCAMElementwise,
        GradCAMPlusPlus,
        GradECLIP,
        GroupCAM,
        GuidedBackprop,
        GuidedGradCAM,
        HiResCAM,
        IntegratedGradCAM,
        LaFAM,
        LayerCAM,
        LeGrad,
        RandomCAM,
        ReciproCAM,
        RefineCAM,
        ScoreCAM,
        SegEigenCAM,
        SegXResCAM,
        ShapleyCAM,
        Smooth,
        SmoothGradCAMPlusPlus,
        TemporalExplanation,
        TestTime,
        TwoTowerExplanation,
        ViTReciproCAM,
        WinsorCAM,
        XGradCAM,
        explain_all,
        temporal_cam,
        two_tower_cam,
    )
    from gradcam_kit.models import load_model
    from gradcam_kit.pixels.decoding import read_picture
    from gradcam_kit.render import contact_sheet, overlay, overlays


# Names are loaded on first use, so that `import gradcam_kit` is fast and a feature imports only its own dependencies.
_HOMES = {
    "GradCamKitError": "gradcam_kit.errors",
    "LayerNotFoundError": "gradcam_kit.errors",
    "ShapeError": "gradcam_kit.errors",
    "HeatmapLogger": "gradcam_kit.comparison",
    "analyze_mistakes": "gradcam_kit.comparison",
    "compare": "gradcam_kit.comparison",
    "contact_sheet": "gradcam_kit.render",
    "explain_folder": "gradcam_kit.folder",
    "load_model": "gradcam_kit.models",
    "load_run": "gradcam_kit.jobs",
    "overlay": "gradcam_kit.render",
    "overlays": "gradcam_kit.render",
    "read_picture": "gradcam_kit.pixels.decoding",
}
_HOME = "gradcam_kit.methods"  # the module of every name that is not in `_HOMES`

__all__ = [
    "CAM",
    "DCAM",
    "DRISE",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "METHODS",
    "ODAM",
    "RISE",
    "SESS",
    "SSCAM",
    "AblationCAM",
    "AttentionRollout",
    "BalancedCAM",
    "BaseCAM",
    "DeepFeatureFactorization",
    "EigenCAM",
    "EigenGradCAM",
    "EigenSmooth",
    "EinsumCAM",
    "ExpectedGradCAM",
    "Explanation",
    "FinerCAM",
    "FullGrad",
    "GenericAttention",
    "GradCAM",
    "GradCAMElementwise",
    "GradCAMPlusPlus",
    "GradCamKitError",
    "GradECLIP",
    "GroupCAM",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HeatmapLogger",
    "HiResCAM",
    "IntegratedGradCAM",
    "LaFAM",
    "LayerCAM",
    "LayerNotFoundError",
    "LeGrad",
    "RandomCAM",
    "ReciproCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "SegXResCAM",
    "ShapeError",
    "ShapleyCAM",
    "Smooth",
    "SmoothGradCAMPlusPlus",
    "TemporalExplanation",
    "TestTime",
    "TwoTowerExplanation",
    "ViTReciproCAM",
    "WinsorCAM",
    "XGradCAM",
    "analyze_mistakes",
    "compare",
    "contact_sheet",
    "explain_all",
    "explain_folder",
    "load_model",
    "load_run",
    "overlay",
    "overlays",
    "read_picture",
    "targets",
    "temporal_cam",
    "two_tower_cam",
]


def __getattr__(name: str) -> Any:
    if name.isidentifier() and not name.startswith("_") and find_spec(f"gradcam_kit.{name}"):
        return import_module(f"gradcam_kit.{name}")
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, _HOME)), name)
    from gradcam_kit.foreign import missing_name

    raise missing_name("gradcam_kit", name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""One file per paper. Importing this package registers every method in `METHODS`."""

from gradcam_kit.methods.base import METHODS, BaseCAM, explain_all, explain_many
from gradcam_kit.methods.einsum_cam import EinsumCAM
from gradcam_kit.methods.explanation import Explanation
from gradcam_kit.methods.grad_cam import GradCAM
from gradcam_kit.methods.grad_cam_plus_plus import GradCAMPlusPlus
from gradcam_kit.methods.hires_cam import HiResCAM
from gradcam_kit.methods.layer_cam import LayerCAM
from gradcam_kit.methods.score_cam import ScoreCAM
from gradcam_kit.methods.xgrad_cam import XGradCAM

__all__ = [
    "METHODS",
    "BaseCAM",
    "EinsumCAM",
    "Explanation",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "ScoreCAM",
    "XGradCAM",
    "explain_all",
    "explain_many",
]

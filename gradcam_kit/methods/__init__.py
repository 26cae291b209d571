"""The explanation methods, one file per paper. Importing this package registers every method in `METHODS`."""

from gradcam_kit.methods.ablation_cam import AblationCAM
from gradcam_kit.methods.attention_rollout import AttentionRollout
from gradcam_kit.methods.balanced_cam import BalancedCAM
from gradcam_kit.methods.base import METHODS, BaseCAM
from gradcam_kit.methods.cam import CAM
from gradcam_kit.methods.contract import single_pass_methods
from gradcam_kit.methods.dcam import DCAM
from gradcam_kit.methods.deep_feature_factorization import DeepFeatureFactorization
from gradcam_kit.methods.drise import DRISE
from gradcam_kit.methods.eigen_cam import EigenCAM
from gradcam_kit.methods.eigen_grad_cam import EigenGradCAM
from gradcam_kit.methods.einsum_cam import EinsumCAM
from gradcam_kit.methods.engine.engine import explain_all, explain_many
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.methods.expected_grad_cam import ExpectedGradCAM
from gradcam_kit.methods.fem import FEM
from gradcam_kit.methods.finer_cam import FinerCAM
from gradcam_kit.methods.full_grad import FullGrad
from gradcam_kit.methods.generic_attention import GenericAttention
from gradcam_kit.methods.grad_cam import GradCAM
from gradcam_kit.methods.grad_cam_elementwise import GradCAMElementwise
from gradcam_kit.methods.grad_cam_plus_plus import GradCAMPlusPlus
from gradcam_kit.methods.grad_eclip import GradECLIP
from gradcam_kit.methods.group_cam import GroupCAM
from gradcam_kit.methods.guided_backprop import GuidedBackprop
from gradcam_kit.methods.guided_grad_cam import GuidedGradCAM
from gradcam_kit.methods.hires_cam import HiResCAM
from gradcam_kit.methods.integrated_grad_cam import IntegratedGradCAM
from gradcam_kit.methods.is_cam import ISCAM
from gradcam_kit.methods.kpca_cam import KPCACAM
from gradcam_kit.methods.lafam import LaFAM
from gradcam_kit.methods.layer_cam import LayerCAM
from gradcam_kit.methods.legrad import LeGrad
from gradcam_kit.methods.odam import ODAM
from gradcam_kit.methods.random_cam import RandomCAM
from gradcam_kit.methods.recipro_cam import ReciproCAM
from gradcam_kit.methods.refine_cam import RefineCAM
from gradcam_kit.methods.rise import RISE
from gradcam_kit.methods.score_cam import ScoreCAM
from gradcam_kit.methods.seg_eigen_cam import SegEigenCAM
from gradcam_kit.methods.seg_xres_cam import SegXResCAM
from gradcam_kit.methods.sess import SESS
from gradcam_kit.methods.shapley_cam import ShapleyCAM
from gradcam_kit.methods.smooth_grad_cam_plus_plus import SmoothGradCAMPlusPlus
from gradcam_kit.methods.smoothing import EigenSmooth, Smooth, TestTime
from gradcam_kit.methods.ss_cam import SSCAM
from gradcam_kit.methods.temporal import TemporalExplanation, temporal_cam
from gradcam_kit.methods.two_tower_cam import TwoTowerExplanation, two_tower_cam
from gradcam_kit.methods.vit_recipro_cam import ViTReciproCAM
from gradcam_kit.methods.winsor_cam import WinsorCAM
from gradcam_kit.methods.xgrad_cam import XGradCAM

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
    "GradECLIP",
    "GroupCAM",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "IntegratedGradCAM",
    "LaFAM",
    "LayerCAM",
    "LeGrad",
    "RandomCAM",
    "ReciproCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "SegXResCAM",
    "ShapleyCAM",
    "Smooth",
    "SmoothGradCAMPlusPlus",
    "TemporalExplanation",
    "TestTime",
    "TwoTowerExplanation",
    "ViTReciproCAM",
    "WinsorCAM",
    "XGradCAM",
    "explain_all",
    "explain_many",
    "single_pass_methods",
    "temporal_cam",
    "two_tower_cam",
]

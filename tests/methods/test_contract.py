"""The engine runs whatever has the attributes of `Method`, not only subclasses of `BaseCAM`."""

from __future__ import annotations

import torch
from models import images, tiny

from gradcam_kit import GradCAM, explain_all
from gradcam_kit.capture import ClassLogit
from gradcam_kit.methods import single_pass_methods
from gradcam_kit.methods.contract import METHODS, Method, gradients_of
from gradcam_kit.types import Evidence, LayerChoice


class Plain:
    """Grad-CAM for one target, without a base class."""

    reshape, fusion, normalize, batch_size = None, "mean", "minmax", 64
    keep_modes, image_input = False, None
    needs, layer_choice, target_type = Evidence.GRADIENTS, LayerChoice.LAST, ClassLogit

    def __init__(self, model):
        self.model, self.target_layers, self.chosen_layers = model, None, {}

    def saliencies(self, layer):
        return (gradients_of(layer).mean((2, 3), keepdim=True) * layer.activations).sum(1)

    def layer_importance(self, layer):
        return None

    def scale(self, heatmaps, depth, layers):
        return heatmaps

    def fuse(self, heatmaps, importance):
        return heatmaps[0]


def test_a_method_without_the_base_class_shares_the_pass_of_others():
    model, x = tiny(), images(2)
    plain, cam = explain_all([Plain(model), GradCAM(model)], x)
    torch.testing.assert_close(plain, cam)


def test_classes_and_models_are_not_methods():
    assert isinstance(GradCAM(tiny()), Method)
    for other in (GradCAM, tiny(), "grad-cam", None):
        assert not isinstance(other, Method)


def test_methods_that_need_further_passes_are_not_single_pass_methods():
    names = single_pass_methods()
    assert {"grad-cam", "cam", "full-grad", "attention-rollout"} <= set(names) <= set(METHODS)
    assert not {"score-cam", "ablation-cam", "sess", "smooth-grad-cam++"} & set(names)

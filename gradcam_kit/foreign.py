"""Names and keywords of other CAM libraries with their counterparts in gradcam_kit, for error messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

from gradcam_kit.errors import InputError

_C = TypeVar("_C", bound=Callable[..., Any])

KEYWORDS = {
    "input_tensor": "images, the first argument of the call: cam(images, targets)",
    "targets_list": "targets, which is a class, one class per image, or a callable",
    "target_category": "targets, which is a class, one class per image, or a callable",
    "class_idx": "targets, which is a class, one class per image, or a callable",
    "layer": "target_layers, which is a module, its name, or a sequence of them",
    "target_layer": "target_layers, which is a module, its name, or a sequence of them",
    "reshape_transform": "reshape, which is not needed for the tokens of common models",
    "use_cuda": "not needed: maps are computed on the device of the model and the images, so call .cuda() on both",
    "device": "not needed: maps are computed on the device of the model and the images, so call .to(device) on both",
    "aug_smooth": "a wrapper: TestTime(cam)(images)",
    "eigen_smooth": "a wrapper: EigenSmooth(cam)(images)",
    "uses_gradients": "the class attribute `needs` of a method",
    "compute_input_gradient": "a separate method: GuidedBackprop(model)",
    "input_shape": "not needed: layers are found in the first call",
    "enable_hooks": "not needed: hooks are attached only during a call",
    "use_rgb": "not needed: pictures and overlays are RGB; picture[..., ::-1] converts BGR pictures of OpenCV",
    "image_weight": "alpha, the opacity of the heatmap, not the weight of the picture: alpha = 1 - image_weight",
}
"""Maps each keyword of another library to its counterpart in gradcam_kit."""

NAMES = {
    "show_cam_on_image": "overlay(picture, heatmap)",
    "overlay_mask": "overlay(picture, heatmap)",
    "preprocess_image": "gradcam_kit.transforms.PictureTransform()(picture)",
    "deprocess_image": "gradcam_kit.render.colorize(heatmap)",
    "ClassifierOutputTarget": "a plain class index: cam(images, targets=281)",
    "ClassifierOutputSoftmaxTarget": "gradcam_kit.targets.ClassProbability(281)",
    "BinaryClassifierOutputTarget": "gradcam_kit.targets.Negative(0) for the negative class, 0 for the positive one",
    "RawScoresOutputTarget": "a callable: targets=lambda output: output.sum(1)",
    "SemanticSegmentationTarget": "gradcam_kit.targets.SegmentationTarget(mask, classes)",
    "FasterRCNNBoxScoreTarget": "gradcam_kit.targets.DetectionTarget(boxes, labels)",
    "ActivationsAndGradients": "gradcam_kit.diagnostics.capture_features(model, layers, gradients=True)",
    "ClassifierOutputReST": "ShapleyCAM(model), which scores classes by the logit plus the log-probability",
    "FinerWeightedTarget": "gradcam_kit.targets.FinerTarget(281)",
    "AblationLayer": "not needed: AblationCAM(model, layer) replaces the channels of any layer",
    "vit_reshape_transform": "not needed: token layouts are detected; reshape= is for unusual layouts",
    "swinT_reshape_transform": "not needed: token layouts are detected; reshape= is for unusual layouts",
    "fasterrcnn_reshape_transform": "not needed: name one layer of the pyramid",
    "scale_cam_image": "gradcam_kit.functional.normalize(maps)",
    "ROADCombined": 'gradcam_kit.metrics.METRICS["road-combined"]',
    "ROADMostRelevantFirst": 'gradcam_kit.metrics.METRICS["road-morf"]',
    "ROADLeastRelevantFirst": 'gradcam_kit.metrics.METRICS["road-lerf"]',
    "DropInConfidence": 'gradcam_kit.metrics.METRICS["average-drop"]',
    "IncreaseInConfidence": 'gradcam_kit.metrics.METRICS["average-increase"]',
    "ClassificationMetric": 'gradcam_kit.metrics.METRICS["average-drop"] and METRICS["average-increase"]',
    "locate_candidate_layer": "not needed: a layer is chosen automatically; `gradcam-kit layers` lists the candidates",
    "LayerAttribution": "not needed: heatmaps have the size of the images",
    "GradCAMElementWise": "GradCAMElementwise",
    "GuidedBackpropReLUModel": "GuidedBackprop(model)",
    "GradCAMpp": "GradCAMPlusPlus",
    "SmoothGradCAMpp": "SmoothGradCAMPlusPlus",
    "LayerGradCam": "GradCAM(model, layer)",
    "GuidedGradCam": "GuidedGradCAM(model, layer)",
    "KPCA_CAM": "KPCACAM",
    "RandomCam": "RandomCAM",
    "ISSCAM": "ISCAM",
}
"""Maps each class or function of another library to its counterpart in gradcam_kit."""


def says_what_it_is_here(function: _C) -> _C:
    """Wrap a function so that keywords of other libraries raise an error that names the replacement.

    A keyword is passed on if the function accepts it or, for a method, if the `model` of the instance does.

    Example:
        >>> @says_what_it_is_here
        ... def explain(images, **options): ...
    """
    own = set(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        foreign = KEYWORDS.keys() & options.keys() - own
        if foreign:
            known = _parameters_of(getattr(args[0], "model", None)) if args else set()
            if named := [keyword for keyword in options if keyword in foreign - known]:
                whose = type(args[0]).__name__ if args and "self" in own else f"{function.__qualname__}()"
                raise InputError(f"{whose} does not accept the keyword {keyword_hints(named)}")
        return function(*args, **options)

    return checked  # type: ignore[return-value]


def missing_name(module: str, name: str) -> Exception:
    """Return the error for a name that a module lacks. For a name of another library, it gives the counterpart."""
    if name in NAMES:  # `from module import name` would replace the message of an AttributeError
        return ImportError(f"{module} has no {name}; in gradcam_kit: {NAMES[name]}")
    return AttributeError(f"module {module!r} has no attribute {name!r}")


def keyword_hints(keywords: Iterable[str]) -> str:
    """Return the keywords with their counterparts, for an error message."""
    return "; ".join(f"{keyword!r}; in gradcam_kit: {KEYWORDS[keyword]}" for keyword in keywords)


def _parameters_of(model: Any) -> set[str]:
    forward = getattr(model, "forward", None)
    return set(inspect.signature(forward).parameters) if callable(forward) else set()

"""Make the methods of a run: find their classes by name, and create them for a model and its layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from gradcam_kit.capture import ClassLogit, choose_layers, read_inputs, resolve_target
from gradcam_kit.errors import (
    GradCamKitError,
    InputError,
    MethodError,
    OptionError,
    UnknownNameError,
    did_you_mean,
    raise_interruption,
)
from gradcam_kit.jobs.storage.rows import method_name
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.reader import Decoded
from gradcam_kit.methods import METHODS, BaseCAM
from gradcam_kit.models.user_code import imported
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.transforms import PictureTransform, Transform
from gradcam_kit.types import LayerChoice


def method_classes(methods: Iterable[str]) -> list[type[BaseCAM]]:
    """Return the classes of the named methods, without duplicates; a name with a colon is a user-defined class.

    Raises:
        GradCamKitError: a method does not exist.
    """
    return list(dict.fromkeys(map(_method_class, methods)))


def with_methods(
    explainer: Explainer,
    methods: Iterable[type[BaseCAM]],
    layers: Sequence[str],
    image: Decoded | None,
    batch_size: int,
    gradient_rule: str = "exact",
) -> Explainer:
    """Return the explainer with methods at the given layers, or at layers chosen once for this image.

    Raises:
        GradCamKitError: a layer or method does not suit the model, or the model does not accept the image.
    """
    images = None if image is None else explainer.images([image])
    chosen: dict[LayerChoice, list[str] | None] = {choice: None for choice in LayerChoice if choice.is_fixed}
    cams = []
    for method in methods:
        choice = method.layer_choice
        if not layers and images is not None and choice not in chosen:
            chosen[choice] = _chosen(explainer, choice, images)
        cams.append(make_method(method, explainer.model, list(layers) or chosen.get(choice), batch_size, gradient_rule))
    if images is not None:
        _check_outputs(explainer, images)
    if image is not None and isinstance(image.image, Tensor) and image.image.dtype == torch.uint8:
        _check_bytes(explainer, image.image)
    return replace(explainer, cams=tuple(cams))


def layers_of(explainer: Explainer) -> dict[str, list[str]]:
    """Return the names of the layers of each method; empty for a method without target layers."""
    return {method_name(cam): list(cam.target_layers or ()) for cam in explainer.cams}


def make_method(
    method: type[BaseCAM],
    model: nn.Module,
    layers: Sequence[str] | None,
    batch_size: int,
    gradient_rule: str = "exact",
) -> BaseCAM:
    """Make a method for a model.

    Raises:
        GradCamKitError: the options do not suit the method, or a user-defined class accepts other arguments.
    """
    try:
        if gradient_rule == "exact":  # user-defined classes need not accept `gradient_rule`
            return method(model, layers, batch_size=batch_size)
        return method(model, layers, batch_size=batch_size, gradient_rule=gradient_rule)
    except GradCamKitError:
        raise
    except Exception as error:
        raise_interruption(error)
        name = f"{method.__module__}:{method.__qualname__}"
        raise MethodError(
            f"{name}(model, layers, batch_size={batch_size}) fails: {type(error).__name__}: {error}; runs "
            "create methods with exactly these arguments"
        ) from error


def request_fault(explainer: Explainer, error: Exception) -> GradCamKitError:
    """Return the error of a request for which no picture can be explained."""
    if isinstance(error, GradCamKitError):
        return error
    hint = _channels(explainer.loaded.transform, str(error))
    wrapped = InputError(
        f"{explainer.loaded.spec} does not accept these pictures: {type(error).__name__}: {error}{hint}"
    )
    wrapped.__cause__ = error
    return wrapped


def _channels(transform: Transform, said: str) -> str:
    """Return the remedy for a transform whose number of channels differs from that of the model."""
    if not isinstance(transform, PictureTransform) or "channels" not in said:
        return ""
    if len(transform.mean) == 1:
        return "; a single mean and std give gray images, so pass three numbers each"
    return "; for a model of gray images, pass a single mean and std, such as --mean 0.5 --std 0.5"


def _chosen(explainer: Explainer, choice: LayerChoice, images: Tensor) -> list[str]:
    target = explainer.targets.number if explainer.targets.kind == "class" else None
    try:
        inputs, resolved = read_inputs(images, {}), resolve_target(target, ClassLogit)
        return list(choose_layers(explainer.model, inputs, resolved, ClassLogit, choice))
    except Exception as error:
        raise_interruption(error)
        raise request_fault(explainer, error) from error


def _check_outputs(explainer: Explainer, images: Tensor) -> None:
    """Refuse class names that do not fit the outputs of the model, and the softmax of a single output."""
    names = explainer.loaded.class_names
    if names is None and explainer.scores is None:
        return
    try:
        with torch.no_grad():
            classes = read_logits(explainer.model(images)).shape[1]
    except Exception as error:  # a model that fails here is refused later, when it explains
        raise_interruption(error)
        return
    if classes == 1 and explainer.scores == "softmax":
        raise OptionError(f"the softmax of {explainer.loaded.spec}'s single output is always 1; choose sigmoid or raw")
    if names is not None and len(names) != classes:
        raise OptionError(
            f"the number of class names, {len(names)}, differs from the number of outputs of {explainer.loaded.spec}, "
            f"{classes}; give one name per line and output, in the order of the outputs (--class-names)"
        )


def _check_bytes(explainer: Explainer, image: UInt8[Tensor, "c h w"]) -> None:
    """Refuse a transform that returns bytes, if the model does not scale bytes itself.

    Raises:
        InputError: the model fails on bytes, so it does not expect values from 0 to 255.
    """
    try:
        with torch.no_grad():
            explainer.model(image[None].to(explainer.device))
    except Exception as error:
        raise_interruption(error)
        raise InputError(
            f"the transform of {explainer.loaded.spec} returns bytes, which the model does not accept: {error}; end "
            "the transform with ToTensor(), or with ToDtype(torch.float32, scale=True)"
        ) from error


def _method_class(name: str) -> type[BaseCAM]:
    if ":" in name:
        try:
            found = imported(name, "method")
        except ModuleNotFoundError as error:
            raise UnknownNameError(f"{name!r} is not a method: there is no module {error.name!r}") from error
        if not (isinstance(found, type) and issubclass(found, BaseCAM)):
            raise InputError(f"{name} is not a method; expected a class derived from gradcam_kit.BaseCAM")
        return found
    if name not in METHODS:
        raise UnknownNameError(
            f"there is no method {name!r}; see 'gradcam-kit methods', or give your own class as "
            f"package.module:Class{did_you_mean(name, METHODS)}"
        )
    return METHODS[name]

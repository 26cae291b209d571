"""Who is at fault when something fails: a picture, the model, a method, or what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from gradcam_kit.errors import (
    GradCamKitError,
    InputError,
    MethodError,
    NonFiniteError,
    is_out_of_memory,
    raise_interruption,
)
from gradcam_kit.jobs.storage.rows import method_name
from gradcam_kit.methods import BaseCAM
from gradcam_kit.transforms import PictureTransform, Transform

if TYPE_CHECKING:
    from gradcam_kit.jobs.work.explainer import Explained, Explainer
    from gradcam_kit.jobs.work.reader import Decoded


def at_fault(explainer: Explainer, one: Decoded, error: Exception) -> Exception:
    """The error of a picture that fails alone, as that of the methods if the model alone takes the picture.

    Raises:
        Exception: the error itself, if nothing fails again.
    """
    if isinstance(error, GradCamKitError) or is_out_of_memory(error) or not explainer.takes(one):
        return error
    failing = [cam for cam in explainer.cams if _fails(explainer, cam, one)]
    if not failing:
        raise error  # once, so it is about neither the picture nor a method
    names = " and ".join(map(method_name, failing))
    return MethodError(f"the method {names} fails where the model alone does not: {type(error).__name__}: {error}")


def _fails(explainer: Explainer, cam: BaseCAM, one: Decoded) -> bool:
    """Whether a method fails on an image, whatever its metrics are."""
    try:
        replace(explainer, cams=(cam,), metrics=()).explained([one])
    except Exception as error:
        raise_interruption(error)
        return True
    return False


def check_again(explainer: Explainer, group: list[Decoded], failure: Exception) -> None:
    """Look at a batch that failed although none of its images fails alone.

    Raises:
        Exception: the failure, if the batch does not fail again, so that it was about neither images nor their number.
    """
    try:
        explainer.explained(group)
    except Exception as error:
        raise_interruption(error)
        if type(error) is type(failure) or is_out_of_memory(error):
            return  # a model that takes fewer images at once
    raise failure


def request_error(found: Sequence[Explained]) -> Exception | None:
    """What to blame the request for: the first error, when every picture that reached the model failed there."""
    errors = [explained.error for explained in found if explained.reached_model]
    if errors and all(error is not None and not isinstance(error, NonFiniteError) for error in errors):
        return errors[0]
    return None


def blamed(explainer: Explainer, error: Exception) -> GradCamKitError:
    """The error of a request whose pictures all fail."""
    if isinstance(error, GradCamKitError):
        return error
    hint = _channels(explainer.loaded.transform, str(error))
    wrapped = InputError(f"{explainer.loaded.spec} cannot take these pictures: {type(error).__name__}: {error}{hint}")
    wrapped.__cause__ = error
    return wrapped


def _channels(transform: Transform, said: str) -> str:
    """What to do where the transform makes another number of channels than the model takes."""
    if not isinstance(transform, PictureTransform) or "channels" not in said:
        return ""
    if len(transform.mean) == 1:
        return "; a single mean and std make gray images, so give three numbers each"
    return "; for a model of gray images give a single mean and std, such as --mean 0.5 --std 0.5"


def check_bytes(explainer: Explainer, image: UInt8[Tensor, "c h w"]) -> None:
    """Refuse bytes from a transform for a model that does not scale them by itself.

    Raises:
        InputError: the model fails on bytes, so it expects other numbers than 0 to 255.
    """
    try:
        with torch.no_grad():
            explainer.model(image[None].to(explainer.device))
    except Exception as error:
        raise InputError(
            f"the transform of {explainer.loaded.spec} returns bytes, which the model does not take: {error}; end "
            "the transform with ToTensor(), or with ToDtype(torch.float32, scale=True)"
        ) from error


def make_method(
    method: type[BaseCAM],
    model: nn.Module,
    layers: Sequence[str] | None,
    batch_size: int,
    gradient_rule: str = "exact",
) -> BaseCAM:
    """A method for a model; "exact" leaves the gradient rule to the method.

    Raises:
        GradCamKitError: the options do not suit it, or a class of the user's cannot be made like the others.
    """
    try:
        if gradient_rule == "exact":
            return method(model, layers, batch_size=batch_size)
        return method(model, layers, batch_size=batch_size, gradient_rule=gradient_rule)  # type: ignore[arg-type]
    except GradCamKitError:
        raise
    except Exception as error:
        raise_interruption(error)
        name = f"{method.__module__}:{method.__qualname__}"
        raise MethodError(
            f"{name}(model, layers, batch_size={batch_size}) fails: {type(error).__name__}: {error}; a method of a run "
            "is made with these arguments alone"
        ) from error

"""Who is at fault when something fails: a picture, the model, a method, or what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from gradcam_kit.errors import GradCamKitError, InputError, MethodError, NonFiniteError, is_out_of_memory
from gradcam_kit.jobs.storage.rows import method_name
from gradcam_kit.methods import BaseCAM

if TYPE_CHECKING:
    from gradcam_kit.jobs.work.explainer import Explained, Explainer
    from gradcam_kit.jobs.work.reader import Decoded


def at_fault(explainer: Explainer, one: Decoded, error: Exception) -> Exception:
    """The error of a picture that fails alone, as that of the methods if the model alone takes the picture."""
    if isinstance(error, GradCamKitError) or is_out_of_memory(error) or not explainer.takes(one):
        return error
    cams = explainer.cams
    failing = [cam for cam in cams if not replace(explainer, metrics=()).suits(cam, one)] if len(cams) > 1 else cams
    names = " and ".join(map(method_name, failing or cams))
    return MethodError(f"the method {names} fails where the model alone does not: {type(error).__name__}: {error}")


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
    wrapped = InputError(f"{explainer.loaded.spec} cannot take these pictures: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def make_method(method: type[BaseCAM], model: nn.Module, layers: Sequence[str] | None, batch_size: int) -> BaseCAM:
    """A method for a model.

    Raises:
        GradCamKitError: the options do not suit it, or a class of the user's cannot be made like the others.
    """
    try:
        return method(model, layers, batch_size=batch_size)
    except GradCamKitError:
        raise
    except Exception as error:
        name = f"{method.__module__}:{method.__qualname__}"
        raise MethodError(
            f"{name}(model, layers, batch_size={batch_size}) fails: {type(error).__name__}: {error}; a method of a run "
            "is made with these arguments alone"
        ) from error

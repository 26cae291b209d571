"""Errors: each says what is wrong with the value, what was expected, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_TOO_LITTLE = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""How a device, a host and the libraries of a device (cuBLAS, cuDNN) say that there is no memory left."""


class GradCamKitError(Exception):
    """Base of every error that this package raises on purpose."""


class LayerNotFoundError(GradCamKitError, LookupError):
    """A target layer that the model does not have, or no layer that suits when it is chosen automatically."""


class UnknownNameError(GradCamKitError, KeyError):
    """A method, metric, model, colormap or option value that does not exist."""

    __str__ = Exception.__str__  # a KeyError would show its message in quotes


class ShapeError(GradCamKitError, ValueError):
    """A tensor whose shape does not fit; the message gives both shapes."""


class TargetError(GradCamKitError, ValueError):
    """A target that cannot be scored: wrong number, wrong kind, or an output that is no class scores."""


class ClassIndexError(GradCamKitError, IndexError):
    """A class index outside of the model's classes."""


class InputError(GradCamKitError, TypeError):
    """An argument of a kind that cannot be used (integer images, a model that is no module, ...)."""


class OptionError(GradCamKitError, ValueError):
    """An option with a value outside of its range."""


class NonFiniteError(GradCamKitError, ValueError):
    """NaN or infinite values in images, activations or gradients."""


class MemoryLimitError(GradCamKitError, MemoryError):
    """More was asked to be kept than a limit allows; the message names the layer, the size and a way out."""


class CaptureError(GradCamKitError, RuntimeError):
    """A layer whose activations or gradients could not be taken."""


class MethodError(GradCamKitError, RuntimeError):
    """A CAM method that fails on a picture that the model takes."""


class CheckpointError(GradCamKitError, ValueError):
    """A checkpoint file that cannot be read safely or does not fit the model."""


class PictureError(GradCamKitError, ValueError):
    """A picture that cannot be read or drawn on."""


class MissingExtraError(GradCamKitError, ImportError):
    """An optional dependency that is not installed; the message says how to install it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the names nearest to ``name``, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had too little memory."""
    said = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in said for words in _TOO_LITTLE)


def kind_of(value: object) -> str:
    """The kind of a value with its article: "a list", "an int"."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIO' else 'a'} {kind}"

"""Exceptions of the package. A message says what is wrong, what was expected, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, TracebackType
from typing import Any

_OOM_MESSAGES = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""Substrings of out-of-memory errors from CUDA, the host allocator, cuBLAS and cuDNN."""


class GradCamKitError(Exception):
    """Base of every error that this package raises on purpose."""


class LayerNotFoundError(GradCamKitError, LookupError):
    """A target layer that the model does not have, or an automatic choice that found no suitable layer."""


class UnknownNameError(GradCamKitError, KeyError):
    """A method, metric, model, colormap or option value that does not exist."""

    __str__ = Exception.__str__  # a KeyError would show its message in quotes


class ShapeError(GradCamKitError, ValueError):
    """A tensor of an unexpected shape; the message gives the shape and the expected shape."""


class TargetError(GradCamKitError, ValueError):
    """A target that cannot be scored: a wrong number or kind of targets, or an output without class scores."""


class ClassIndexError(GradCamKitError, IndexError):
    """A class index outside the model's classes."""


class DetectionIndexError(GradCamKitError, IndexError):
    """An index of an image or a detection outside the output of a detector."""


class InputError(GradCamKitError, TypeError):
    """An argument of a kind that cannot be used (integer images, a model that is not a module, ...)."""


class OptionError(GradCamKitError, ValueError):
    """An option with a value outside its range."""


class NonFiniteError(GradCamKitError, ValueError):
    """NaN or infinite values in images, activations or gradients."""


class MemoryLimitError(GradCamKitError, MemoryError):
    """A limit on kept data was exceeded; the message names the layer, the size and a remedy."""


class CaptureError(GradCamKitError, RuntimeError):
    """A capture or observation that failed, such as the capture of a layer that did not run."""


class MethodError(GradCamKitError, RuntimeError):
    """A CAM method that fails on a picture although the model itself does not."""


class CheckpointError(GradCamKitError, ValueError):
    """A checkpoint file that cannot be read safely or does not fit the model."""


class PictureError(GradCamKitError, ValueError):
    """A picture that cannot be read or rendered."""


class MissingExtraError(GradCamKitError, ImportError):
    """An optional dependency that is not installed; the message says how to install it."""


def extra_hint(extra: str) -> str:
    """Return how to install an extra of `pyproject.toml` from the checkout, as long as there is no release.

    The package index is not mentioned, because a different package there may have the same name.
    """
    return f'in the checkout of gradcam-kit run: pip install -e ".[{extra}]"'


def missing_extra(need: str, extra: str, instead: str = "") -> MissingExtraError:
    """Return the error for an optional dependency that is not installed, with the command that installs it.

    Args:
        need: the feature and its library, such as "plots need matplotlib".
        extra: name of the extra in `pyproject.toml`.
        instead: an alternative that works without the library; empty if there is none.

    Example:
        >>> from gradcam_kit.errors import missing_extra
        >>> print(missing_extra("this needs Ray", "ray"))
        this needs Ray, which is not installed; in the checkout of gradcam-kit run: pip install -e ".[ray]"
    """
    parts = (f"{need}, which is not installed", extra_hint(extra), instead)
    return MissingExtraError("; ".join(filter(None, parts)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the names nearest to ``name``, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory; other errors may merely mention memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in _OOM_MESSAGES)


def interruption(error: BaseException) -> BaseException | None:
    """Return the exception that a signal's handler (or a trace function) raised, if it is `error` or led to `error`.

    Such an exception is unrelated to the interrupted work and would not recur. A handler can be recognized in a
    traceback, because it is called with the interrupted frame as an argument, which no other function is.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        if _passed_handler(one.__traceback__):
            return one
        seen.add(id(one))
        pending += [one.__context__, one.__cause__]
    return None


def raise_interruption(error: BaseException) -> None:
    """Raise the exception of a signal handler if it led to `error`; call this before handling `error`."""
    found = interruption(error)
    if found is not None:
        raise found


@contextmanager
def exits_refused() -> Iterator[None]:
    """Turn `sys.exit` in the user's code into an error, even with exit status 0.

    Raises:
        InputError: SystemExit was raised in the block, except by a signal handler.
    """
    try:
        yield
    except SystemExit as error:
        raise_interruption(error)
        code = "" if error.code is None else repr(error.code)
        raise InputError(
            f"the code of the model or a method called sys.exit({code}); raise an exception that says what failed"
        ) from error


def is_same_failure(first: BaseException, second: BaseException | None) -> bool:
    """Whether the same work failed twice in the same way; an exception that does not recur is unrelated to the work."""
    return type(first) is type(second) and str(first) == str(second)


def _passed_handler(traceback: TracebackType | None) -> bool:
    outer = None
    while traceback is not None:
        frame = traceback.tb_frame
        if outer is not None:
            code, values = frame.f_code, frame.f_locals
            for name in _parameters(code):
                value: Any = values.get(name)
                if value is outer or (type(value) is tuple and any(one is outer for one in value)):
                    return True
        outer, traceback = frame, traceback.tb_next
    return False


def _parameters(code: CodeType) -> tuple[str, ...]:
    takes_any = bool(code.co_flags & 0x04)  # CO_VARARGS: `def handler(*_)`
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + takes_any]


def kind_of(value: object) -> str:
    """Return the kind of a value with its article: "a list", "an int"."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIO' else 'a'} {kind}"

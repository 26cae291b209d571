"""Read the pictures of a run, without messages of decoders and with at most one large picture at a time."""

from __future__ import annotations

import ctypes
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

try:
    import fcntl
except ImportError:  # on Windows, where the memory for large pictures is not limited
    fcntl = None  # type: ignore[assignment]

from gradcam_kit.errors import PictureError, raise_interruption
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.storage.folders import opened
from gradcam_kit.pixels.decoding import decode_picture, looks_like_twelve_bits
from gradcam_kit.pixels.opencv import log_level, set_log_level
from gradcam_kit.transforms import Picture

_LARGE = 2**26  # maximum number of pixels of a picture that is not large; most cameras have fewer


def read_entry(entry: Entry, admit: Callable[[int], object] | None = None) -> Picture:
    """Read a picture, with error messages that do not repeat the picture's name.

    Args:
        entry: the picture.
        admit: called with the number of pixels (0 = unknown) before memory is allocated.

    Raises:
        PictureError: the file does not exist, is not a picture, or is truncated.
    """
    try:
        with opened(entry.path) as file:
            return decode_picture(file, admit)
    except Exception as error:
        raise_interruption(error)
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise PictureError(f"cannot read the picture: {reason}") from error


def depth_note(entry: Entry) -> str | None:
    """Return a note on a 16-bit picture with 12-bit values, which is nearly black."""
    try:
        with opened(entry.path) as file:
            if looks_like_twelve_bits(file):
                return (
                    f"{entry.key} has 16 bits but no value above 4095, as if it held unscaled 12-bit data, "
                    "so it is nearly black; multiply such pictures by 16 and save them again"
                )
    except Exception as error:  # the row of the picture will report the error
        raise_interruption(error)
        return None
    return None


@contextmanager
def picture_of(entry: Entry) -> Iterator[Picture]:
    """Open a picture for the duration of the block; while a large picture is open, other large pictures wait.

    Thus all workers together need memory for only one large picture.

    Raises:
        PictureError: see `read_entry`.
    """
    with ExitStack() as held:
        picture = read_entry(entry, lambda pixels: held.enter_context(_alone()) if pixels > _LARGE else None)
        if picture.size > 3 * _LARGE:
            _give_back()
        yield picture


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other thread or process has a large picture open, and keep others waiting during the block.

    The lock is a file lock, which the system releases even if decoding the picture kills the process.
    """
    with ExitStack() as held:
        if fcntl is not None:
            try:
                name = os.path.join(tempfile.gettempdir(), f"gradcam-kit-{os.getuid()}.lock")
                lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Closing alone would not unlock the file while a forked process has it open too.
                held.callback(fcntl.flock, lock, fcntl.LOCK_UN)
            except OSError as error:  # without a lock file, read the picture anyway
                raise_interruption(error)
        held.callback(_give_back)
        yield


def _give_back() -> None:
    """Give memory freed by decoders back to the system, because the C library would keep it for each thread."""
    with suppress(AttributeError, OSError, TypeError):  # not every C library has this function
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def decoders_quiet() -> Iterator[None]:
    """Silence decoders as `silence_decoders` does, until the end of the block."""
    before = log_level()
    with warnings.catch_warnings():
        silence_decoders()
        try:
            yield
        finally:
            set_log_level(before)


def silence_decoders() -> None:
    """Keep messages of decoders off the terminal, because the row of a picture reports its error.

    PIL still refuses pictures above its limit of 179 megapixels, but no longer warns about pictures above half of it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    set_log_level()

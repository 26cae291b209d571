"""Import OpenCV in one place, and tell in one line what to install if it cannot be loaded."""

from __future__ import annotations

from typing import Any

from gradcam_kit.errors import MissingExtraError

try:
    import cv2
except ImportError as error:
    # Slim containers lack libGL and GLib, which the wheels of opencv-python load but do not contain.
    raise MissingExtraError(
        f"OpenCV cannot be loaded ({error}); on Debian or Ubuntu run: apt-get install libgl1 libglib2.0-0"
        if "cannot open shared object file" in str(error)
        else f"OpenCV cannot be loaded ({error}); run: pip install opencv-python"
    ) from error

__all__ = ["cv2", "log_level", "set_log_level"]

_SILENT = 0


def _logging() -> Any:
    """Return the module with the log level: `cv2.utils.logging` since 4.13, `cv2` itself before."""
    try:
        from cv2.utils import logging
    except ImportError:
        return cv2
    return logging


def log_level() -> int:
    """Return OpenCV's log level, or 0 (silent) if this build does not have the setting."""
    get = getattr(_logging(), "getLogLevel", None)
    return _SILENT if get is None else int(get())


def set_log_level(level: int = _SILENT) -> None:
    """Set OpenCV's log level, 0 (silent) to 6 (verbose), if this build has the setting."""
    if set_level := getattr(_logging(), "setLogLevel", None):
        set_level(level)

"""Deprecated alias of `gradcam_kit.jobs.storage.folders`, kept for one release."""

from __future__ import annotations

import warnings
from typing import Any

from gradcam_kit.jobs.storage import folders


def __getattr__(name: str) -> Any:
    value = getattr(folders, name)
    warnings.warn(
        f"gradcam_kit.jobs.files.{name} has moved; import it from gradcam_kit.jobs.storage.folders",
        DeprecationWarning,
        stacklevel=2,
    )
    return value

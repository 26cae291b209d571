"""Numbers of a closed window for a logger."""

from __future__ import annotations

import logging
from typing import Any

from gradcam_kit.diagnostics.maths.histogram import edges, ordered
from gradcam_kit.diagnostics.tracks import Ledger

_log = logging.getLogger("gradcam_kit")


def write_window(writer: Any, ledger: Ledger) -> bool:
    """Hand the last window to a writer; False if the writer failed, which is logged and must not end a training."""
    step, limits = ledger.steps, edges()
    try:
        for track in ledger.tracks.values():
            if track.closed is not None:
                writer.scalar(f"{track.name}/mean", track.closed.moments.mean, step)
                writer.scalar(f"{track.name}/std", track.closed.moments.std, step)
                writer.scalar(f"{track.name}/gradient_norm", track.closed.gradient_norm, step)
                writer.histogram(track.name, limits, ordered(track.counts), step)
        for parameter in ledger.parameters.values():
            writer.scalar(f"{parameter.name}/update_ratio", parameter.update.value, step)
    except Exception as error:  # the training goes on whatever a logger does
        _log.warning("the writer failed and is dropped: %s: %s", type(error).__name__, error)
        return False
    return True

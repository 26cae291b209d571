"""Verdicts on the first non-finite numbers, and the layers that are not judged because of them."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.statistics import Moments
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import LayerTrack

_HALVINGS = 16  # number of halvings from GradScaler's initial scale, 2**16, to 1
_MASKS = ("Softmax", "LogSoftmax")


def behind_nonfinite(tracks: Sequence[LayerTrack], limits: Thresholds) -> set[str]:
    """Return the names of the first track with NaN or infinities in the judged window, and of all tracks after it.

    These tracks are not called dead or constant: a unit without finite values is neither, and a unit after it is not at
    fault. Layers before the first NaN are still judged, because a dead or constant layer may be its cause.
    """
    fed = _feeds_softmax(tracks)
    ordered = sorted(tracks, key=lambda track: track.order)
    broken = [_is_broken(track, track.last_window(limits.dead_samples).moments, fed) for track in ordered]
    first = broken.index(True) if any(broken) else len(ordered)
    return {track.name for track in ordered[first:]}


def value_finiteness(tracks: Sequence[LayerTrack]) -> list[Finding]:
    """Return at most one finding: the first layer with non-finite values."""
    fed = _feeds_softmax(tracks)
    broken = []
    for track in tracks:
        moments = track.total.merge(track.open.moments)
        if _is_broken(track, moments, fed):
            broken.append((track.first_bad_step or 0, track.order, track, moments))
    if not broken:
        return []
    step, _, track, moments = min(broken, key=lambda own: own[:2])
    kind, count, more = "NaN" if moments.nan else "infinite", moments.nan + moments.inf, len(broken) - 1
    share = f"{count:,} of {moments.elements:,} values" if track.counted else f"values in {count:,} of its outputs"
    others = f"; {more} more {'layer follows' if more == 1 else 'layers follow'}" if more else ""
    return [
        Finding(
            "bad", "nonfinite", track.layer,
            f"the first layer with {kind} values, in step {step} (over all steps, {share} are not finite){others}",
            count, 0, moments.n, advice.NONFINITE, "definition",
        )
    ]  # fmt: skip


def gradient_finiteness(tracks: Sequence[LayerTrack], ledger: Ledger, limits: Thresholds) -> list[Finding]:
    """Return at most one finding: the first layer of the backward pass with non-finite gradients."""
    broken = [track for track in tracks if track.last_window(limits.dead_samples).bad_gradients]
    if not broken:
        return []
    track = broken[-1]  # the last layer in the order of execution is the first one of the backward pass
    window = track.last_window(limits.dead_samples)
    number = len(window.gradient_norms)
    # A GradScaler skips steps whose gradients overflow, and lowers its scale until they no longer do.
    begins = track.windows <= 1 and window.bad_gradients <= _HALVINGS
    is_scaling = (ledger.scaled or track.is_half) and (begins or window.bad_gradients < max(number / 2, 3))
    return [
        Finding(
            "note" if is_scaling else "bad", "nonfinite", track.layer,
            f"{window.bad_gradients} of {number} gradients at its output are NaN or infinite",
            window.bad_gradients / max(number, 1), 0.0, window.moments.n or None,
            advice.AMP if is_scaling else advice.NONFINITE, "definition",
        )
    ]  # fmt: skip


def _feeds_softmax(tracks: Sequence[LayerTrack]) -> set[str | None]:
    return {track.producer for track in tracks if track.kind in _MASKS}


def _is_broken(track: LayerTrack, moments: Moments, feeds_softmax: set[str | None]) -> bool:
    """Whether values are not finite, apart from the -inf of a mask before a softmax."""
    return bool(moments.nan or (moments.inf and track.name not in feeds_softmax))

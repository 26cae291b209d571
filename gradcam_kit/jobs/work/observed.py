"""Train a copy of a model under observation, and show outputs of some of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import holding_hooks
from gradcam_kit.diagnostics.checks.batches import Pair, samples
from gradcam_kit.diagnostics.checks.preserving import left_as_found
from gradcam_kit.diagnostics.checks.tasks import Loss
from gradcam_kit.diagnostics.checks.training import run_findings
from gradcam_kit.diagnostics.features import capture_features
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import COARSE, coarsen
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.rows import report_of
from gradcam_kit.diagnostics.show.page import FeatureMaps, Strips
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.watching import ModelDiagnostics
from gradcam_kit.functional import normalize
from gradcam_kit.pixels.pictures import encode_picture
from gradcam_kit.render import colorize

# Kinds of findings about the optimizer, which is not the user's.
_OWN = ("update", "not-in-optimizer", "frozen", "accumulated")
_LAYERS, _PICTURES, _LARGEST = 6, 3, 112
_STRETCH = 1.5  # maximum ratio between the proportions of a map and of the image
_FEWEST_UNITS, _MOST_UNITS = 4, 256


def observed_training(
    model: nn.Module, batches: list[Pair], loss: Loss, steps: int
) -> tuple[list[Finding], Report, dict[str, Strips]]:
    """Train a copy of a model, and return the findings, the report about its layers, and plots of the layers.

    Raises:
        GradCamKitError: the layers cannot be observed.
    """
    watched: list[_Timeline] = []

    @contextmanager
    def watch(copy: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        with ModelDiagnostics(copy, optimizer=optimizer, window=steps) as diagnostics, holding_hooks() as attach:
            watched.append(_Timeline(diagnostics))
            attach.after_step(optimizer, watched[-1].take)
            yield

    found = run_findings(model, batches, loss, None, steps, watch)
    if not watched:
        return found, Report(()), {}
    ledger = watched[0].diagnostics.state_dict()["ledger"]
    _count_once(ledger, sum(samples(inputs) for inputs, _ in batches))
    report = report_of(ledger, Thresholds())
    found += [finding for finding in report.findings if finding.kind not in _OWN]
    return found, report, watched[0].strips()


def _count_once(ledger: Ledger, distinct: int) -> None:
    """Count repeated samples only once, because a verdict about units needs distinct samples."""
    for track in ledger.tracks.values():
        for window in (own for own in (track.open, track.closed) if own is not None):
            window.moments = replace(window.moments, n=min(window.moments.n, distinct))
            if window.features is not None:
                window.features = window.features[:distinct]


@dataclass(eq=False)
class _Timeline:
    """Histograms of the values of each layer in each step."""

    diagnostics: ModelDiagnostics
    before: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, *_: Any) -> None:
        """Store the histogram of the values since the last call."""
        for name, track in self.diagnostics.state_dict()["ledger"].tracks.items():
            counts = coarsen(track.counts)
            self.columns.setdefault(name, []).append(counts - self.before.get(name, 0))
            self.before[name] = counts

    def strips(self) -> dict[str, Strips]:
        """Return the plots of each layer."""
        tracks = self.diagnostics.state_dict()["ledger"].tracks
        return {name: Strips(_over_time(columns), _units(tracks[name])) for name, columns in self.columns.items()}


def _over_time(columns: list[Any]) -> bytes:
    """Render one column for each step, with the largest values on top and without non-finite values."""
    counts = np.stack(columns, axis=1)[: COARSE - 1].astype(np.float64)
    if not counts.any():
        return b""
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    return _png(np.log1p(1000 * shares[::-1]) / np.log1p(1000))


def _units(track: Any) -> bytes:
    """Render the maximum of each unit in the last window, on a scale from zero to the overall maximum."""
    high = track.last_window(0).high
    if high is None or len(high) < _FEWEST_UNITS or not np.isfinite(high).all():
        return b""
    high = high[:: -(-len(high) // _MOST_UNITS)].clip(min=0)
    return _png(high[None] / max(float(high.max()), 1e-30))


def _png(values: Any) -> bytes:
    return encode_picture(colorize(torch.from_numpy(values.copy()).float()[None], "viridis")[0], ".png")


def feature_maps(model: nn.Module, images: Float[Tensor, "n c h w"], report: Report) -> list[FeatureMaps]:
    """Return the channel means of up to six layers with positions, spread evenly over the depth of the model."""
    names = [row.name for row in report.layers if row.unit_axis == 1 and _are_positions(row.shape, images.shape)]
    names = [name for name in dict.fromkeys(names) if _has(model, name)]
    if not names:
        return []
    chosen = chosen_evenly(names, _LAYERS)
    with left_as_found(model, images), torch.no_grad(), capture_features(model, chosen) as features:
        model(images[:_PICTURES])
    outputs = {name: features[name].calls[0].output for name in chosen if name in features}
    return [maps_of(name, output, " x ".join(map(str, output.shape[1:]))) for name, output in outputs.items()]


def _are_positions(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Whether the last axes of an output are image positions; heads and tokens have other proportions."""
    if len(shape) != 4 or min(shape[2:]) < 2:
        return False
    stretch = (shape[2] / shape[3]) / (image[2] / image[3])
    return 1 / _STRETCH < stretch < _STRETCH


def chosen_evenly(names: Sequence[str], most: int) -> list[str]:
    """Return at most `most` of the names, evenly spread, including the first and the last one."""
    count = min(most, len(names))
    return list(dict.fromkeys(names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)))


def maps_of(name: str, output: Float[Tensor, "n k h w"], caption: str) -> FeatureMaps:
    """Return the mean over channels of each sample as a picture."""
    maps = normalize(output.detach().float().nan_to_num().mean(dim=1).cpu())
    step = max(1, -(-max(maps.shape[1:]) // _LARGEST))
    pictures = colorize(maps[:, ::step, ::step], "viridis")
    return FeatureMaps(name, caption, [encode_picture(picture, ".png") for picture in pictures])


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())

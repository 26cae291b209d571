"""A copy of a model observed while it trains, and what some of its layers make of pictures."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.diagnostics.checks.batches import Pair
from gradcam_kit.diagnostics.checks.preserving import left_as_found
from gradcam_kit.diagnostics.checks.tasks import Loss
from gradcam_kit.diagnostics.checks.training import run_findings
from gradcam_kit.diagnostics.features import capture_features
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.show.page import FeatureMaps
from gradcam_kit.diagnostics.watching import ModelDiagnostics
from gradcam_kit.functional import normalize
from gradcam_kit.pixels.pictures import encode_picture
from gradcam_kit.render import colorize

_OWN = ("update", "not-in-optimizer", "frozen", "accumulated")  # of an optimizer that is not the user's
_LAYERS, _PICTURES, _LARGEST = 6, 3, 112


def observed_training(model: nn.Module, batches: list[Pair], loss: Loss, steps: int) -> tuple[list[Finding], Report]:
    """Train a copy of a model, and return what is wrong with it and the report about its layers.

    Raises:
        GradCamKitError: layers that cannot be observed.
    """
    watched: list[ModelDiagnostics] = []

    def watch(copy: nn.Module, optimizer: torch.optim.Optimizer) -> ModelDiagnostics:
        watched.append(ModelDiagnostics(copy, optimizer=optimizer, window=steps))
        return watched[-1]

    found = run_findings(model, batches, loss, None, steps, watch)
    report = watched[0].report() if watched else Report(())
    return [*found, *(finding for finding in report.findings if finding.kind not in _OWN)], report


def feature_maps(model: nn.Module, images: Float[Tensor, "n c h w"], report: Report) -> list[FeatureMaps]:
    """Return the mean over channels of the outputs of some layers that have positions, evenly spread over the depth."""
    names = [row.name for row in report.layers if len(row.shape) == 4 and min(row.shape[2:]) > 1 and row.unit_axis == 1]
    names = [name for name in dict.fromkeys(names) if _has(model, name)]
    if not names:
        return []
    count = min(_LAYERS, len(names))
    chosen = list(dict.fromkeys(names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)))
    with left_as_found(model, images), torch.no_grad(), capture_features(model, chosen) as features:
        model(images[:_PICTURES])
    return [_maps(name, features[name].calls[0].output) for name in chosen if name in features]


def _maps(name: str, output: Any) -> FeatureMaps:
    maps = normalize(output.detach().float().nan_to_num().mean(dim=1).cpu())
    step = max(1, -(-max(maps.shape[1:]) // _LARGEST))
    pictures = colorize(maps[:, ::step, ::step], "viridis")
    shape = " x ".join(map(str, output.shape[1:]))
    return FeatureMaps(name, shape, [encode_picture(picture, ".png") for picture in pictures])


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())

"""Observe training with Lightning: `Trainer(callbacks=[DiagnosticsCallback()])`."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from gradcam_kit.capture import select_layers
from gradcam_kit.diagnostics.callbacks.session import SessionCallback
from gradcam_kit.errors import missing_extra

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as _error:
    raise missing_extra("DiagnosticsCallback needs lightning", "loggers") from _error


class DiagnosticsCallback(SessionCallback, Callback):
    """Observe training with a Lightning `Trainer`, except for validation.

    When training ends, the reports of all ranks are merged on rank 0. After an error or an interruption, each rank
    keeps its own report, because other ranks may have stopped.

    Args:
        out: folder for `diagnostics.jsonl` and, at the end, `diagnostics.html`; None writes no files.
        writer: a `Writer` or a sequence of them, used on rank 0 and closed at the end.
        heatmaps: a `HeatmapLogger`, whose `step()` is called after each batch on rank 0.
        options: options of `ModelDiagnostics`, such as `layers`, `every` and `window`. Without `layers`, all leaf
            modules except metrics of torchmetrics are observed.

    Raises:
        MissingExtraError: lightning is not installed.
        OptionError: an option that `ModelDiagnostics` does not have.
        InputError: a writer that has none of the methods of `Writer`.

    Example:
        >>> callback = DiagnosticsCallback(every=10)
        >>> callback.diagnostics is None  # until Trainer(callbacks=[callback]).fit(...) begins
        True
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start observing."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._session.start(pl_module, list(trainer.optimizers), scaler=scaler, layers=_without_metrics(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Call `step()` of the `HeatmapLogger`."""
        self._session.step()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause observing during validation."""
        self._session.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume observing after validation."""
        self._session.resume()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop observing, and keep the report of this rank."""
        self._session.stop(failed=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop observing, and merge the reports of all ranks on rank 0."""
        self._session.stop(failed=False)


def _without_metrics(module: nn.Module) -> list[nn.Module] | None:
    """Return the leaf modules of a model except metrics; None if torchmetrics is not in use or no leaf remains."""
    metric = getattr(sys.modules.get("torchmetrics"), "Metric", None)
    if metric is None:
        return None
    inside = {part for own in module.modules() if isinstance(own, metric) for part in own.modules()}
    return [leaf for leaf in select_layers(module).values() if leaf not in inside] or None

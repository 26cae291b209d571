"""Checks of data, model outputs, losses and training runs; each returns a list of findings without side effects."""

from gradcam_kit.diagnostics.checks.curves import check_curves
from gradcam_kit.diagnostics.checks.data import check_data
from gradcam_kit.diagnostics.checks.loss import check_loss
from gradcam_kit.diagnostics.checks.output import check_output
from gradcam_kit.diagnostics.checks.overfit import can_overfit
from gradcam_kit.diagnostics.checks.training import check_training

__all__ = ["can_overfit", "check_curves", "check_data", "check_loss", "check_output", "check_training"]

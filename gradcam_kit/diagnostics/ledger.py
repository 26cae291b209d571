"""The record of a block of `ModelDiagnostics`: the statistics of all layers and parameters, and facts about the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gradcam_kit.diagnostics.tracks import LayerTrack, ParameterTrack


@dataclass
class Ledger:
    """All observations of a `with` block of `ModelDiagnostics`, without tensors or modules.

    Attributes:
        model: name of the model's class.
        tracks: statistics by name of an output.
        parameters: statistics by name of a parameter.
        never_ran: names of the modules that did not run.
        skipped: reason why an output is not measured, by name.
        notes: notes for the report.
        steps: number of observed steps.
        window: number of steps in a window.
        exact: whether histograms count all values instead of a sample.
        outputs: size of axis 1 of the model's output, such as the number of classes.
        optimizer_steps: number of steps of the optimizers.
        gradient_norms: step and norm of all gradients together, for the last measured steps.
        window_norms: largest of these norms in each of the last windows.
        has_optimizer: whether an optimizer is observed.
        scaled: whether a GradScaler is used.
    """

    model: str
    tracks: dict[str, LayerTrack] = field(default_factory=dict)
    parameters: dict[str, ParameterTrack] = field(default_factory=dict)
    never_ran: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: int = 0
    window: int = 50
    exact: bool = False
    outputs: int = 0
    optimizer_steps: int = 0
    gradient_norms: list[tuple[int, float]] = field(default_factory=list)
    window_norms: list[float] = field(default_factory=list)
    has_optimizer: bool = False
    scaled: bool = False

    def merge(self, other: Ledger) -> Ledger:
        """Return the merged observations; neither ledger is changed."""

        def united(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
            both = {name: own.merge(theirs[name]) if name in theirs else own for name, own in mine.items()}
            return {**both, **{name: own for name, own in theirs.items() if name not in mine}}

        return replace(
            self,
            tracks=united(self.tracks, other.tracks),
            parameters=united(self.parameters, other.parameters),
            never_ran=tuple(name for name in self.never_ran if name in other.never_ran),
            skipped={**self.skipped, **other.skipped},
            notes=list(dict.fromkeys(self.notes + other.notes)),
            steps=max(self.steps, other.steps),
            outputs=max(self.outputs, other.outputs),
            optimizer_steps=max(self.optimizer_steps, other.optimizer_steps),
        )

"""The report of `ModelDiagnostics`: findings first, then one row for each layer and parameter."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.diagnostics.maths.statistics import binomial_error
from gradcam_kit.errors import missing_extra

if TYPE_CHECKING:
    import pandas

_SHOWN = {"name": 28, "type": 18}


@dataclass(frozen=True)
class LayerRow:
    """The statistics of one layer since the start; `dead` and `effective_rank` are those of the last window.

    Attributes:
        name: dotted name, with the position in the output if the layer returns several tensors.
        type: class name of the module.
        calls: number of calls in one step.
        n: number of samples.
        elements: number of values.
        shape: shape of the last output.
        unit_axis: the axis of the units (channels); None for a single unit.
        mean: mean of all finite values.
        std: standard deviation of all finite values, with their number as the divisor.
        min: the smallest finite value.
        max: the largest finite value.
        nan: number of NaN values; on a GPU, number of outputs with NaN.
        inf: number of infinite values; on a GPU, number of outputs with infinite values but no NaN.
        zeros: number of zeros; estimated from samples unless `exact=True`, see `Report.zeros_error`.
        dead: number of units that were never active; None for layers whose units cannot die, and after a NaN.
        units: number of units.
        effective_rank: effective rank of the pooled features, which are not standardized; None if not measured.
        gradient_norm: median norm of the gradient at the output.
        gradient_rms: median of the norm divided by the square root of the number of values.
    """

    name: str
    type: str
    calls: int
    n: int
    elements: int
    shape: tuple[int, ...]
    unit_axis: int | None
    mean: float
    std: float
    min: float
    max: float
    nan: int
    inf: int
    zeros: int
    dead: int | None
    units: int
    effective_rank: float | None
    gradient_norm: float
    gradient_rms: float


@dataclass(frozen=True)
class ParameterRow:
    """The norms and updates of one parameter; NaN until they are measured.

    Attributes:
        name: dotted name.
        norm: norm of its values at the last measured step.
        gradient_norm: norm of its gradient at the last measured step.
        gradient_ratio: `gradient_norm` divided by `norm`.
        update_ratio: median of rms(change) / rms(values) of one optimizer step.
        local: whether the parameter is spread over processes (`fully_shard`), and only local shards were measured.
    """

    name: str
    norm: float
    gradient_norm: float
    gradient_ratio: float
    update_ratio: float
    local: bool = False


@dataclass(frozen=True, repr=False)
class Report:
    """The findings of a block, worst first, with the numbers behind them; displayed in notebooks.

    Attributes:
        findings: what is wrong, in which module, and what to try.
        layers: one row per layer, in the order of execution.
        parameters: one row per parameter.
        never_ran: layers that did not run and so were not judged.
        skipped: outputs without statistics, and why.
        notes: remarks on what was not observed, and why.
        steps: number of observed steps.
        sampled: name of each layer, with the number of values in which zeros were counted.
    """

    findings: tuple[Finding, ...]
    layers: tuple[LayerRow, ...] = ()
    parameters: tuple[ParameterRow, ...] = ()
    never_ran: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    steps: int = 0
    sampled: tuple[tuple[str, int], ...] = ()

    def zeros_error(self, row: LayerRow) -> int:
        """Return the margin of error (binomial, 95 %) of a layer's number of zeros; 0 if all values were counted."""
        counted = dict(self.sampled).get(row.name, row.elements)
        if counted >= row.elements:
            return 0
        return math.ceil(binomial_error(row.zeros / row.elements, counted) * row.elements)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of the layers as a table, in the order of execution.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("to_pandas() needs pandas", "diagnostics") from error
        return pd.DataFrame([asdict(row) for row in self.layers], columns=[field.name for field in fields(LayerRow)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values for strict JSON, with None for NaN and infinity."""
        return {
            "steps": self.steps,
            "findings": [finding.to_dict() for finding in self.findings],
            "layers": [_strict(asdict(row)) for row in self.layers],
            "parameters": [_strict(asdict(row)) for row in self.parameters],
            "never_ran": list(self.never_ran),
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "sampled": dict(self.sampled),
        }

    def __str__(self) -> str:
        if not self.steps:
            return "nothing observed: no step ran inside the block"
        lines = [self.summary, *map(str, self.findings), *(f"NOTE {note}" for note in self.notes)]
        if self.never_ran:
            lines.append(f"Never ran: {', '.join(self.never_ran)}.")
        if self.skipped:
            lines.append(f"No statistics: {', '.join(f'{name} ({reason})' for name, reason in self.skipped)}.")
        return "\n".join([*lines, "", *_table([self._cells(row) for row in self.layers])])

    def _cells(self, row: LayerRow) -> list[str]:
        cells = {name: _shown(getattr(row, name)) for name in _COLUMNS}
        error = self.zeros_error(row)
        return list((cells | {"zeros": f"{cells['zeros']}+-{error}" if error else cells["zeros"]}).values())

    @property
    def summary(self) -> str:
        """One sentence with the numbers of observed steps, layers and findings."""
        counts = {level: sum(finding.level == level for finding in self.findings) for level in ("bad", "warn", "note")}
        said = ", ".join(f"{count} {level}" for level, count in counts.items() if count) or "nothing found"
        return f"{self.steps} steps, {len(self.layers)} layers: {said}."

    def _repr_html_(self) -> str:
        if not self.steps:
            return f"<p>{html.escape(str(self))}</p>"
        items = "".join(f"<li><pre>{html.escape(str(finding))}</pre></li>" for finding in self.findings)
        names = _COLUMNS
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in self._cells(row)) + "</tr>"
            for row in self.layers
        )
        return (
            f"<p>{html.escape(self.summary)}</p><ul>{items}</ul>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


_COLUMNS = ("name", "type", "shape", "n", "mean", "std", "min", "max", "zeros", "dead", "units", "gradient_rms")


def sorted_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings, worst first."""
    return tuple(worst_first(findings))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [list(_COLUMNS), *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(own) for key, own in value.items()}
    if isinstance(value, tuple | list):
        return [_strict(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

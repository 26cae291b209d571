"""Render the diagnosis of a model as a page: findings first, then skipped checks, layers, updates, and data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.pages import data_uri, page_template

_TEMPLATES = Path(__file__).parent / "templates"
_LOWEST, _HIGHEST = -6.0, 0.0  # exponents of the lowest and highest update ratios on the page
_ROWS = 400  # maximum number of layers, and of parameters, on the page


@dataclass(frozen=True)
class Channel:
    """Statistics of one channel of the model's input images.

    Attributes:
        title: name of the data set.
        index: index of the channel.
        mean: mean of all values.
        std: standard deviation of all values.
        low: the smallest value.
        high: the largest value.
    """

    title: str
    index: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """Two duplicate pictures as JPEG, with a description of their relation."""

    first: str
    second: str
    first_jpeg: bytes
    second_jpeg: bytes
    what: str

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """The name and the data URI of both pictures."""
        both = (self.first, self.first_jpeg), (self.second, self.second_jpeg)
        return [(name, data_uri(jpeg, "jpeg")) for name, jpeg in both]


@dataclass(frozen=True)
class DataSection:
    """The data section of the page.

    Attributes:
        counts: for each data set, its labels with their number of samples, the most frequent first.
        channels: for each data set, the statistics of its channels.
        pairs: pairs of duplicate pictures.
    """

    counts: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    channels: Sequence[Channel] = ()
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True)
class Strips:
    """Two small plots of one layer as PNG; empty bytes for a plot that cannot be made.

    Attributes:
        over_time: histogram of the values, one column for each step.
        units: the largest value of each unit in the last window, one column for each unit (at most 256, evenly spaced).
    """

    over_time: bytes = b""
    units: bytes = b""

    @property
    def pictures(self) -> list[tuple[str, str, str]]:
        """The CSS class, the alternative text and the data URI of each plot."""
        both = ("over-time", "values over the steps", self.over_time), ("units", "largest value by unit", self.units)
        return [(kind, text, data_uri(png, "png")) for kind, text, png in both if png]


@dataclass(frozen=True)
class FeatureMaps:
    """Maps of one layer as PNG, one per picture."""

    layer: str
    shape: str
    pngs: Sequence[bytes]

    @property
    def addresses(self) -> list[str]:
        """The data URIs of the maps."""
        return [data_uri(png, "png") for png in self.pngs]


@dataclass(frozen=True)
class PartTable:
    """A table about one kind of module, such as attention.

    Attributes:
        title: title of the section.
        explains: explanation of the numbers.
        columns: names of the columns.
        rows: cells as displayed text.
    """

    title: str
    explains: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_page(
    *,
    model: str,
    findings: Sequence[Finding],
    weights: str = "",
    inputs: Sequence[str] = (),
    skipped: Sequence[tuple[str, str]] = (),
    report: Any = None,
    maps: Sequence[FeatureMaps] = (),
    strips: Mapping[str, Strips] | None = None,
    parts: Sequence[PartTable] = (),
    attention: Sequence[FeatureMaps] = (),
    data: DataSection | None = None,
    settings: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> str:
    """Return the page as an HTML document that needs neither network nor scripts.

    Args:
        model: name of the examined model.
        findings: the findings, in any order.
        weights: source of the weights.
        inputs: description of the examined inputs.
        skipped: skipped checks, with the reasons.
        report: report of `ModelDiagnostics` with layers and updates; None leaves out their sections.
        maps: feature maps of some layers.
        strips: name of a layer -> its plots over time and by unit.
        parts: tables about attention, recurrent layers and pyramids.
        attention: attention maps of the heads of some layers.
        data: the data section; None leaves it out.
        settings: name of a setting -> its value.
        seconds: name of a part of the diagnosis -> its time in seconds.
    """
    findings = worst_first(findings)
    counts = Counter(finding.level for finding in findings)
    return page_template("doctor.html", _TEMPLATES).render(
        model=model,
        weights=weights,
        findings=findings,
        counts=counts,
        verdict=verdict(findings),
        inputs=inputs,
        skipped=skipped,
        layers=_profile(report, strips or {}),
        updates=_updates(report),
        maps=maps,
        parts=parts,
        attention=attention,
        data=data,
        settings=settings or {},
        seconds=seconds or {},
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def verdict(findings: Sequence[Finding]) -> str:
    """Summarize all findings in one sentence."""
    bad = [finding for finding in findings if finding.level == "bad"]
    if bad:
        kinds = list(dict.fromkeys(finding.kind.replace("-", " ") for finding in bad))
        return f"Something is wrong: {', '.join(kinds[:4])}{' and more' if len(kinds) > 4 else ''}."
    if any(finding.level == "warn" for finding in findings):
        return "Nothing is clearly wrong, but something deserves a look."
    return "Nothing wrong was found."


def _profile(report: Any, strips: Mapping[str, Strips]) -> list[dict[str, Any]]:
    """Return one entry per layer: its numbers, and the lengths of its bars in percent."""
    rows = [] if report is None else list(report.layers)[:_ROWS]
    stds, gradients = (_decades([getattr(row, name) for row in rows]) for name in ("std", "gradient_rms"))
    return [
        {
            "row": row,
            "std": std,
            "gradient": gradient,
            "dead": None if row.dead is None or not row.units else 100 * row.dead / row.units,
            "strips": strips.get(row.name, Strips()).pictures,
            "broken": (row.nan or 0) + (row.inf or 0),
            "numbers": [
                ("mean", row.mean),
                ("std", row.std),
                ("min", row.min),
                ("max", row.max),
                ("zeros", row.zeros),
                ("dead units", row.dead),
                ("units", row.units),
                ("effective rank", row.effective_rank),
                ("gradient norm", row.gradient_norm),
                ("gradient rms", row.gradient_rms),
                ("samples", row.n),
                ("calls", row.calls),
            ],
        }
        for row, std, gradient in zip(rows, stds, gradients, strict=True)
    ]


def _updates(report: Any) -> list[dict[str, Any]]:
    """Return one entry per measured parameter, with the position of its update ratio on the axis from 1e-6 to 1."""
    rows = [] if report is None else [row for row in report.parameters if _is_finite(row.update_ratio)][:_ROWS]
    return [{"name": row.name, "ratio": row.update_ratio, "place": place_of(row.update_ratio)} for row in rows]


def place_of(ratio: float) -> float:
    """Return the position of an update ratio on the page, in percent of the width."""
    decade = _LOWEST if ratio <= 0 or not math.isfinite(ratio) else math.log10(ratio)
    return 100 * (min(max(decade, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)


def _decades(values: Sequence[float | None]) -> list[float | None]:
    """Return bar lengths in percent, on a logarithmic scale from a decade below the smallest value to the largest."""
    logs = [math.log10(value) if value is not None and _is_finite(value) and value > 0 else None for value in values]
    known = [value for value in logs if value is not None]
    if not known:
        return [None] * len(values)
    low, high = min(known) - 1, max(known)
    return [None if value is None else 100 * (value - low) / (high - low) for value in logs]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

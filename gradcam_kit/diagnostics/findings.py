"""Findings: the results of diagnostics as data, for terminal, page, log and notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gradcam_kit.options import one_of

Level = Literal["bad", "warn", "note"]
"""Severity: "bad" is a fault, "warn" deserves a look, "note" is good to know."""

LEVELS: tuple[Level, ...] = get_args(Level)
"""All levels, the most severe first."""

KINDS = (
    "dead",
    "saturated",
    "constant",
    "collapsed",
    "redundant",
    "vanishing",
    "exploding",
    "no-gradient",
    "not-in-optimizer",
    "frozen",
    "update",
    "accumulated",
    "nonfinite",
    "leak",
    "duplicate",
    "label-conflict",
    "label-range",
    "labels-disagree",
    "unknown-class",
    "normalization",
    "range",
    "softmax-twice",
    "constant-output",
    "batch-leak",
    "random-eval",
    "overfit-batch",
    "diverged",
    "overfit",
    "plateau",
    "shift",
    "redundant-heads",
    "sink",
    "stuck-gate",
)
"""Every kind of finding; programs can rely on these names."""


@dataclass(frozen=True)
class Finding:
    """One result of a diagnostic.

    Attributes:
        level: "bad", "warn" or "note".
        kind: one of `KINDS`.
        layer: the dotted name of a module or parameter; "" for data and for the model as a whole.
        message: what was found and where, in one sentence.
        value: the number behind the verdict, or None.
        threshold: the limit to which the value was compared, or None.
        n: number of samples, or of points of a curve, behind the verdict; or None.
        advice: the usual meaning of the finding, and what to try.
        source: where the threshold comes from: a paper, a convention or a definition.

    Raises:
        OptionError: an unknown level or kind.

    Example:
        >>> print(Finding("warn", "plateau", "", "The loss stopped falling", 0.002, 0.01, 30, "Lower the rate"))
        WARN plateau: The loss stopped falling (value 0.002, threshold 0.01, n = 30).
             Lower the rate.
    """

    level: Level
    kind: str
    layer: str
    message: str
    value: float | int | None = None
    threshold: float | int | None = None
    n: int | None = None
    advice: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        one_of("level", self.level, LEVELS)
        one_of("kind", self.kind, KINDS)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values for strict JSON, with None for NaN and infinity."""
        return {name: _strict(value) for name, value in asdict(self).items()}

    @property
    def numbers(self) -> str:
        """The value, its threshold and n as text; "" if all are None."""
        parts = [
            "" if self.value is None else f"value {_number(self.value)}",
            "" if self.threshold is None else f"threshold {_number(self.threshold)}",
            "" if self.n is None else f"n = {self.n:,}",
        ]
        return ", ".join(filter(None, parts))

    def __str__(self) -> str:
        numbers = f" ({self.numbers})" if self.numbers else ""
        where = f" in {self.layer}" if self.layer else ""
        advice = f"\n     {_sentence(self.advice)}" if self.advice else ""
        return f"{self.level.upper():<4} {self.kind}{where}: {self.message.rstrip('.')}{numbers}.{advice}"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings sorted by severity; findings of one level keep their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _number(value: float | int) -> str:
    """Format a count with all its digits, and any other number with four significant digits."""
    # Beyond 2**24 every float32 is a whole number, so a whole number need not be a count.
    is_count = isinstance(value, int) or (value.is_integer() and abs(value) <= 2**24)
    return f"{int(value):,}" if is_count else f"{value:.4g}"


def _strict(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."

"""Compare two files of results: medians side by side, and whether they differ by more than the spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.results import Figure, Results, console, load

_HARDWARE = ("processor", "cores", "device", "threads")
_UNLIKE = ("commit", "memory_gb", "system")
"""Settings that may differ without a warning: the commit is what is compared, and memory and system matter little."""

_SAME = 0.02
"""Smaller relative changes are ignored, even for figures that were measured only once and have no spread."""

_LESS, _MORE = ("faster", "slower"), ("slower", "faster")
_WORDS = {
    "seconds": _LESS,
    "seconds_per_image": _LESS,
    "microseconds": _LESS,
    "ratio": _LESS,
    "pictures_per_second": _MORE,
    "gb_per_s": _MORE,
    "time_per_picture_growth": _LESS,
    "passes": ("fewer passes", "more passes"),
    "peak_mb": ("less memory", "more memory"),
    "memory_growth": ("less memory", "more memory"),
    "energy": ("worse", "better"),
    "correlation": ("worse", "better"),
    "share": ("worse", "better"),
    "difference": ("better", "worse"),
    "difference_earlier": ("better", "worse"),
}
"""Figure -> words for a lower and for a higher value; all other figures are only reported as "down" or "up"."""


@dataclass(frozen=True)
class Change:
    """One figure in two files; None if a file lacks it."""

    case: str
    figure: str
    old: Figure | None
    new: Figure | None

    @property
    def ratio(self) -> float:
        """The new median divided by the old one; if the old one is 0, infinity, or 1 if the new one is 0, too."""
        assert self.old is not None
        assert self.new is not None
        return self.new.median / self.old.median if self.old.median else float("inf" if self.new.median else 1)

    @property
    def mark(self) -> str:
        """A word for the change, such as "slower", "new" or "gone"; "" if it is below 2 % or within the spread."""
        if self.old is None or self.new is None:
            return "gone" if self.new is None else "new"
        if abs(self.ratio - 1) < _SAME:
            return ""
        down, up = _WORDS.get(self.figure, ("down", "up"))
        return up if self.new.low > self.old.high else down if self.new.high < self.old.low else ""


def run(
    old: Annotated[Path, typer.Argument(help="stored results of a command", exists=True, dir_okay=False)],
    new: Annotated[Path, typer.Argument(help="other results of the same command", exists=True, dir_okay=False)],
    everything: Annotated[bool, typer.Option("--all", help="also list figures within the spread")] = False,
) -> None:
    """Show which figures of two files of results differ so much that their quartiles do not overlap."""
    try:
        first, second = load(old), load(new)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected results stored by a command such as `methods`") from error
    if first.command != second.command:
        raise typer.BadParameter(
            f"{old} is from `{first.command}`, {new} from `{second.command}`; expected the same command"
        )
    for warning in differences(first, second):
        console().print(warning)
    found = list(changes(first, second))
    shown = found if everything else [change for change in found if change.mark]
    table = Table("case", "figure", "old", "new", "new / old", "beyond the spread")
    for change in shown:
        both = change.old is not None and change.new is not None
        ratio = f"{change.ratio:.2f}" if both else ""
        table.add_row(change.case, change.figure, str(change.old or ""), str(change.new or ""), ratio, change.mark)
    console().print(table)
    counts = Counter(change.mark or "within the spread" for change in found)
    console().print(
        f"figures compared: {len(found)}, of which {', '.join(f'{count} {mark}' for mark, count in counts.items())}"
    )


def differences(old: Results, new: Results) -> Iterator[str]:
    """Yield a warning for every condition that differs and may affect the figures."""
    before, after = _settings(old.environment), _settings(new.environment)
    for name in dict.fromkeys([*before, *after]):
        values = before.get(name), after.get(name)
        if values[0] != values[1] and name not in _UNLIKE:
            effect = (
                "times cannot be compared, but ratios can"
                if name in _HARDWARE
                else "figures may differ for this reason"
            )
            yield f"different {name}: {values[0]} and {values[1]}; {effect}"


def _settings(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return all conditions by name, with the version of each package under the name of the package."""
    return {**{name: value for name, value in environment.items() if name != "versions"}, **environment["versions"]}


def changes(old: Results, new: Results) -> Iterator[Change]:
    """Yield the change of every figure that occurs in either file."""
    before, after = figures(old), figures(new)
    for key in dict.fromkeys([*before, *after]):
        yield Change(*key, before.get(key), after.get(key))


def figures(results: Results) -> dict[tuple[str, str], Figure]:
    """Return the figures by case and name."""
    return {(row.key, name): figure for row in results.rows for name, figure in row.figures.items()}

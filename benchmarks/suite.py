"""How every command measures: case by case; one that fails is skipped with the reason, and what is known is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import memory_bounded, reason
from benchmarks.results import Results, Row, console, environment, file_of

NO_CUDA = "no CUDA device is at hand"


def attempt(case: Mapping[str, str | int], rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows, and where measuring them fails a last one: the case, skipped with the reason."""
    try:
        yield from rows()
    except Exception as error:  # whatever happens to one case must not end the suite
        yield Row(case, skipped=reason(error))


def record(
    command: str,
    device: str,
    rows: Iterable[Row],
    *,
    threads: int | None = None,
    out: Path | None = None,
    quick: bool = False,
    **settings: Any,
) -> None:
    """Take the rows one after the other, which measures them, print them, and store them.

    They are stored where `out` says; else a full run replaces the stored results, and a quick one is not stored. The
    file is replaced when all rows are there; until then they are beside it, in one whose name ends in `.partial`.
    Without a GPU, what asks for one is a single skipped row, and stored results are left alone.

    Args:
        rows: nothing is measured before they are taken; what may fail is an `attempt`.
    """
    if threads:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        Results(command, environment("cpu", **settings), [Row({"work": "all"}, skipped=NO_CUDA)]).finish(out)
        return
    place = out or (None if quick else file_of(command, device))
    taken: list[Row] = []
    results = Results(command, environment(device, **settings), taken)
    try:
        with memory_bounded():
            for row in rows:
                taken.append(row)
                if place:
                    results.save(partial_of(place))
    except BaseException:  # such as Ctrl-C
        results.finish(None)
        if place:
            console().print(f"not complete: the rows so far are in {partial_of(place)}")
        raise
    results.finish(place)
    if place:
        partial_of(place).unlink(missing_ok=True)


def partial_of(place: Path) -> Path:
    """Where the rows of a run are that is not complete."""
    return place.with_name(f"{place.name}.partial")

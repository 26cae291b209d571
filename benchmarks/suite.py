"""Measure case by case: a case that fails is skipped with the reason, and earlier results are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import memory_bounded, reason
from benchmarks.results import Results, Row, console, environment, file_of

NO_CUDA = "no CUDA device is available"


def attempt(case: Mapping[str, str | int], rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows; if measuring fails, end with a skipped row that has the case and the reason."""
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
    """Measure the rows one after the other, print them, and store them.

    Rows are stored in `out`. Without it, a full run replaces the stored results, and a quick run is not stored. The
    file is replaced when all rows are complete; until then, they are in a file next to it whose name ends in
    `.partial`. Without a GPU, a benchmark for GPUs gives a single skipped row, which is stored only in `out`.

    Args:
        command: name of the benchmark.
        device: "cpu" or "cuda".
        rows: iterator that measures each row when it is taken; cases that may fail are wrapped in `attempt`.
        threads: number of torch threads; None = leave it unchanged.
        out: file for the rows.
        quick: whether this is a quick run.
        settings: further settings, which are stored with the rows.
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
    except BaseException:  # for example Ctrl-C
        results.finish(None)
        if place:
            console().print(f"incomplete: the rows measured so far are in {partial_of(place)}")
        raise
    results.finish(place)
    if place:
        partial_of(place).unlink(missing_ok=True)


def partial_of(place: Path) -> Path:
    """Return the path to which an incomplete run writes its rows."""
    return place.with_name(f"{place.name}.partial")

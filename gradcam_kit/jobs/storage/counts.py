"""Count the pictures and failures in a shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gradcam_kit.jobs.request import SHOWN
from gradcam_kit.jobs.storage.rows import Row


@dataclass(frozen=True)
class Counts:
    """The numbers of pictures and failures in a shard.

    Attributes:
        pictures: number of pictures.
        failed: number of pictures with an error in at least one row.
        problems: the first few failures, one line each.
    """

    pictures: int
    failed: int
    problems: tuple[str, ...] = ()


def counted(rows: Iterable[Row], shown: int = SHOWN) -> Counts:
    """Count pictures and failures in rows; the rows of a picture are adjacent."""
    pictures, failed, last, last_failed = 0, 0, None, None
    problems: list[str] = []
    for row in rows:
        if row["path"] != last:
            pictures, last = pictures + 1, row["path"]
        if row.get("error") is not None and row["path"] != last_failed:
            failed, last_failed = failed + 1, row["path"]
            if len(problems) < shown:
                problems.append(f"{row['path']}: {row['error'].partition(': ')[2] or row['error']}")
    return Counts(pictures, failed, tuple(problems))

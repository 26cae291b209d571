"""The plan of a run: its pictures in order, cut into shards, stored in a file instead of memory."""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from json.encoder import encode_basestring_ascii
from typing import IO, Any

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.sources.index import Entry, find_pictures, no_pictures
from gradcam_kit.jobs.sources.walk import Skipped
from gradcam_kit.jobs.storage.folders import is_full

_SORTED_AT_ONCE = 100_000  # maximum number of entries in memory, about 60 MB


@dataclass(frozen=True)
class Shard:
    """A slice of the plan.

    Attributes:
        entries: the pictures of the slice, or only the pictures to retry.
        positions: positions of these pictures in the plan.
        kept: all earlier rows of the slice, if pictures are retried.
    """

    number: int
    entries: list[Entry]
    positions: Sequence[int]
    kept: list[dict[str, Any]] = field(default_factory=list)

    def again(self, rows: list[dict[str, Any]]) -> Shard:
        """Return the shard reduced to the pictures that failed in these rows; the other rows are kept."""
        failed = {row["path"] for row in rows if row["error"] is not None}
        chosen = [i for i, entry in enumerate(self.entries) if entry.key in failed]
        return Shard(self.number, [self.entries[i] for i in chosen], [self.positions[i] for i in chosen], rows)

    def with_kept(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the new rows merged with the kept ones, in order."""
        if not self.kept:
            return rows
        new = {key: list(group) for key, group in groupby(rows, _path)}
        old = {key: list(group) for key, group in groupby(self.kept, _path)}
        return [row for key in old for row in new.get(key, old[key])]


@dataclass(frozen=True)
class Plan:
    """The pictures of a source, without duplicates and sorted by key, so that the order is the same in every run.

    Attributes:
        shard_size: number of pictures in each shard except the last.
        pictures: number of pictures.
        digest: SHA-256 of keys and labels.
        left_out: files and folders below the source that are not input.
        lines: temporary file with the pictures, one per line.
        offsets: position of each shard in this file, and the end of the file.
    """

    shard_size: int
    pictures: int
    digest: str
    left_out: Skipped
    lines: IO[bytes] = field(repr=False)
    offsets: array[int] = field(repr=False)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.offsets) - 1

    def shard(self, number: int) -> Shard:
        """Read one shard."""
        self.lines.seek(self.offsets[number])
        text = self.lines.read(self.offsets[number + 1] - self.offsets[number])
        entries = [_read(line) for line in text.splitlines()]
        first = number * self.shard_size
        return Shard(number, entries, range(first, first + len(entries)))

    def entries(self) -> Iterator[Entry]:
        """Yield all pictures, in order."""
        for number in range(self.shards):
            yield from self.shard(number).entries

    def close(self) -> None:
        """Remove the temporary file."""
        self.lines.close()


def make_plan(source: str, out: str, shard_size: int) -> Plan:
    """List the pictures of a source, in memory that does not grow with their number.

    Raises:
        InputError: the source holds no pictures, or cannot be read.
        OptionError: the disk has no room for temporary files.
    """
    with _room_needed(), ExitStack() as unfinished:
        lines = unfinished.enter_context(tempfile.TemporaryFile())
        plan = _written(lines, source, out, shard_size)
        unfinished.pop_all()  # from here on the plan closes the file
    return plan


def _written(lines: IO[bytes], source: str, out: str, shard_size: int) -> Plan:
    left_out = Skipped()
    digest, offsets, position, pictures = hashlib.sha256(), array("Q"), 0, 0
    last: Entry | None = None
    for entry in _sorted(find_pictures(source, out, left_out)):
        if last is not None and entry[:2] == last[:2]:
            left_out.repeat(entry.key, last.label, entry.label)
            continue
        last = entry
        if pictures % shard_size == 0:
            offsets.append(position)
        line = _line(entry)
        position += lines.write(line)
        digest.update(_line(Entry(entry.key, "", entry.label)))
        pictures += 1
    if not pictures:
        raise no_pictures(source, left_out)
    offsets.append(position)
    lines.flush()  # flush here, where `_room_needed` reports a full disk
    return Plan(shard_size, pictures, digest.hexdigest(), left_out, lines, offsets)


def _sorted(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Sort by key in bounded memory: write sorted chunks to files, then merge them."""
    entries = iter(entries)
    with ExitStack() as files:
        pieces: list[Iterable[Entry]] = []
        while piece := sorted(islice(entries, _SORTED_AT_ONCE), key=_order):
            if len(piece) < _SORTED_AT_ONCE:
                pieces.append(piece)
                break
            file = files.enter_context(tempfile.TemporaryFile())
            file.writelines(map(_line, piece))
            file.seek(0)
            pieces.append(map(_read, file))
        yield from heapq.merge(*pieces, key=_order)


@contextmanager
def _room_needed() -> Iterator[None]:
    """Report a full disk as an error of the folder for temporary files, because planning writes nowhere else."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise OptionError(
            f"the plan of the run cannot be written to {tempfile.gettempdir()!r}: {error.strerror}; free some "
            "space, or set TMPDIR to another folder"
        ) from error


def _path(row: Mapping[str, Any]) -> Any:
    return row["path"]


def _order(entry: Entry) -> tuple[str, str]:
    return entry.key, entry.path


def _line(entry: Entry) -> bytes:
    """Return an entry as a line of JSON, which escapes odd bytes in names; `json.dumps` would be ten times as slow."""
    return f"[{', '.join(map(_field, entry))}]\n".encode()


def _field(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def _read(line: bytes) -> Entry:
    return Entry(*_decoded(line.decode())[0])


_decoded = json.JSONDecoder().raw_decode

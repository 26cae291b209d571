"""Read the rows of a run as a lazy table."""

from __future__ import annotations

import operator
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, UInt8

from gradcam_kit.errors import InputError, OptionError, PictureError, UnknownNameError, did_you_mean, missing_extra
from gradcam_kit.functional import Normalization
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.reading import read_entry
from gradcam_kit.jobs.storage.addresses import is_remote
from gradcam_kit.jobs.storage.rows import SCHEMA, Row, enlarged, heatmap_of
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.measuring import MetricMeans, columns_of, metric_fields
from gradcam_kit.jobs.work.overlays import overlay_of
from gradcam_kit.metrics.registry import described

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class Run:
    """A run on disk, as a sequence of rows: one per picture, method and target, with one shard in memory at a time.

    `run[i]` is a row, and `run[a:b]` is a list of rows. The DataFrame of `to_pandas()` has the same index, so a row
    that is selected in it can be shown: `run.overlay(frame[frame.correct.eq(False)].index[0])`.

    Attributes:
        store: the files in the folder of the run.
        manifest: the content of `run.json`.
    """

    store: Store
    manifest: dict[str, Any]
    _numbers: list[int] = field(init=False)
    _ends: list[int] = field(init=False)
    _pictures: int = field(init=False)
    _cached: tuple[int, list[Row]] = field(init=False, default=(-1, []))

    def __post_init__(self) -> None:
        there = self.store.complete()
        self._numbers = sorted(there)
        self._pictures = sum(counts.pictures for counts in there.values())
        self._ends = list(accumulate(map(self._length, self._numbers)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        planned = self.manifest["pictures"]
        pictures = f"{self._pictures} of {planned} pictures (not finished)" if self.left else f"{planned} pictures"
        methods = ", ".join(self.methods)
        return f"Run({self.store.folder.root!r}: {len(self)} rows of {pictures}, {self.manifest['model']}, {methods})"

    @overload
    def __getitem__(self, index: SupportsIndex) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        wanted = operator.index(index)
        if not -len(self) <= wanted < len(self):
            raise IndexError(f"there is no row {wanted}; the number of rows is {len(self)}")
        wanted %= len(self)
        place = bisect_right(self._ends, wanted)
        if self._cached[0] != place:
            self._cached = place, self._shard(self._numbers[place]).to_pylist()
        return self._cached[1][wanted - (self._ends[place - 1] if place else 0)]

    def __iter__(self) -> Iterator[Row]:
        for number in self._numbers:
            yield from self._shard(number).to_pylist()

    @property
    def left(self) -> int:
        """The number of pictures of the source that do not have rows yet."""
        return int(self.manifest["pictures"]) - self._pictures

    @property
    def methods(self) -> list[str]:
        """The methods of the run."""
        return list(self.manifest["methods"])

    @property
    def metrics(self) -> list[str]:
        """The metrics of the rows; some rows may lack metrics that were measured after the run."""
        return list(self._settings)

    @property
    def notes(self) -> list[str]:
        """One line per metric, with its better direction and all settings of its numbers."""
        return described(self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {**self.manifest.get("metrics", {}), **self._later}

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows as an Arrow table, with all columns or the given ones; the heatmaps take most of its memory.

        Raises:
            UnknownNameError: a column does not exist.
        """
        fields = self._fields()
        for name in columns or ():
            if name not in fields.names:
                hint = did_you_mean(name, fields.names)
                raise UnknownNameError(f"the run has no column {name!r}; it has {', '.join(fields.names)}{hint}")
        tables = [self._shard(number, columns) for number in self._numbers]
        return pa.concat_tables(tables) if tables else fields.empty_table()

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return all rows as a DataFrame, without the heatmaps unless requested.

        Raises:
            MissingExtraError: pandas is not installed.
            UnknownNameError: a column does not exist.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise missing_extra("a DataFrame needs pandas", "notebook") from error
        wanted = columns or [name for name in self._fields().names if name != "heatmap"]
        frame: pd.DataFrame = self.table(wanted).to_pandas()
        return frame

    def means(self) -> list[dict[str, Any]]:
        """Return the means of all metrics for methods and baselines, see `MetricMeans.lines`."""
        found, columns = MetricMeans(), [field.name for field in metric_fields(self.metrics)]
        for number in self._numbers:
            later, settings = measured = self.store.read_metrics(number)
            rows = self._shard(number, ["method", *columns], measured)
            found.add(rows.to_pylist(), self.metrics)
            if later is not None:
                found.add(later.slice(rows.num_rows).to_pylist(), list(settings))  # the baselines
        return found.lines()

    def heatmap(self, index: SupportsIndex) -> Float[np.ndarray, "h w"]:
        """Return a row's heatmap in [0, 1] at the size of the model's input; it covers the part `box` of the picture.

        Raises:
            PictureError: the picture of the row could not be explained.
        """
        row = self._explained(index)
        return enlarged(row, self._normalization(row))

    def stored_heatmap(self, index: SupportsIndex) -> Float[np.ndarray, "h w"]:
        """Return the stored heatmap of a row, at the layer's resolution.

        Raises:
            PictureError: the picture of the row could not be explained.
        """
        return heatmap_of(self._explained(index)).astype(np.float32)

    def picture(self, index: SupportsIndex) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture of a row, read from its path at the time of the run.

        Raises:
            PictureError: the picture no longer exists or cannot be read.
        """
        return read_entry(Entry(self[index]["path"], self.path_of(self[index]["path"])))

    def overlay(self, index: SupportsIndex) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture of a row with its heatmap, at the picture's original size.

        Raises:
            PictureError: the picture could not be explained, no longer exists, or cannot be read.
        """
        row = self._explained(index)
        return overlay_of(row, self.picture(index), self._normalization(row))

    def _explained(self, index: SupportsIndex) -> Row:
        row = self[index]
        if row["status"] != "ok":
            raise PictureError(f"row {index} ({row['path']}) has no heatmap: {row['error']}")
        return row

    def _normalization(self, row: Row) -> Normalization:
        settings = self.manifest["methods"].get(row["method"])
        if settings is None:
            place = self.store.place("run.json")
            raise InputError(f"a row has the method {row['method']!r}, which is not in {place}; the run is damaged")
        known: Normalization = settings["normalize"]
        return known

    def path_of(self, key: str) -> str:
        """Return the path of a key's picture at the time of the run."""
        root = self.manifest["about"]["root"]
        return f"{root}/{key}" if is_remote(root) else os.path.join(root, _name(key))

    def _fields(self) -> pa.Schema:
        return pa.schema([*SCHEMA, *metric_fields(self.metrics)])

    @cached_property
    def _later(self) -> dict[str, Any]:
        return self.store.measured_later()

    def _shard(
        self,
        number: int,
        columns: Sequence[str] | None = None,
        found_later: tuple[pa.Table | None, dict[str, Any]] | None = None,
    ) -> pa.Table:
        """Return the rows of a shard, in which later measurements replace the measurements of the run.

        `found_later` is the result of `read_metrics` for this shard; None = the method calls `read_metrics` if needed.
        """
        fields = self._fields() if columns is None else pa.schema(map(self._fields().field, columns))
        measured = self.manifest.get("metrics", {})
        own = [*SCHEMA.names, *(field.name for field in metric_fields(measured))]
        asked = {*fields.names}
        if self._later and "error" in asked:  # `_joined_errors` needs the statuses of the metrics
            asked |= {"status", *own} - {"heatmap"}
        table = self.store.shard_table(number, list(dict.fromkeys(["path", *(name for name in own if name in asked)])))
        found = {name: table[name] for name in table.column_names}
        wanted = {*fields.names} & {"error", *(field.name for field in metric_fields(self._later))}
        if found_later is None:
            found_later = self.store.read_metrics(number) if self._later and wanted else (None, {})
        later, settings = found_later
        if later is not None:
            later = later.slice(0, table.num_rows)  # without the rows of the baselines, which follow
            if "error" in wanted:
                found["error"] = _joined_errors(table, later, measured, settings)
            found |= {name: later[name] for name in wanted - {"error"} if name in later.column_names}
        return pa.table([found.get(one.name, pa.nulls(table.num_rows, one.type)) for one in fields], schema=fields)

    def _length(self, number: int) -> int:
        return self.store.length(number)


def _joined_errors(own: pa.Table, later: pa.Table, measured: Iterable[str], again: Iterable[str]) -> pa.ChunkedArray:
    """Return the error of each row, without errors of the run about metrics that have been measured again since."""

    def failed(metrics: Iterable[str]) -> pa.ChunkedArray:
        statuses = [own[columns_of(name)[1]] for name in metrics]
        none = pa.chunked_array([pa.array([False] * own.num_rows, pa.bool_())])
        return reduce(pc.or_, (pc.fill_null(pc.equal(status, "error"), False) for status in statuses), none)

    stale = pc.and_not(failed(set(measured) & set(again)), failed(set(measured) - set(again)))
    stale = pc.and_(stale, pc.equal(own["status"], "ok"))
    return pc.if_else(stale, later["error"], pc.coalesce(own["error"], later["error"]))


def load_run(directory: str | Path) -> Run:
    """Open the folder of a run.

    A run folder may come from somebody else, so it is treated as data: modules that it names are not imported.

    Raises:
        OptionError: the folder holds no run.
        InputError: its `run.json` or a shard was not written by a run.
    """
    store = Store.at(os.fspath(directory))
    manifest = store.run_manifest()
    if manifest is None:
        raise OptionError(f"{os.fspath(directory)!r} holds no run; make one: gradcam-kit run SOURCE --out DIR")
    return Run(store, manifest)


def _name(key: str) -> str:
    """Return the file name of a key, with the bytes that the key writes as `\\xff` because they are not UTF-8."""
    if "\\x" not in key:
        return key
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), key.encode()))

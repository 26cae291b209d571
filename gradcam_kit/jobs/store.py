"""What a run leaves in its folder: `run.json`, shards of rows, overlays. Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_kit.errors import OptionError

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("layer", pa.string()),
        pa.field("target", pa.int32()),
        pa.field("target_name", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("is_empty", pa.bool_()),
        pa.field("heatmap", pa.binary()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("box", pa.list_(pa.float64(), 4)),
    ]
)
"""One row per picture and method (and target, where several are asked for).

`heatmap` is little-endian float16 `(height, width)` in [0, 1], row by row, over the part `box` of the picture; with
several layers it has the resolution of the finest, and `layer` joins their names with `+`.
"""

Row = dict[str, Any]

_LONGEST_NAME = 255  # bytes, on all common file systems


@dataclass(frozen=True)
class Store:
    """The folder of one run."""

    out: Path

    @property
    def manifest(self) -> Path:
        """The file that says what determined the rows."""
        return self.out / "run.json"

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that holds a run already; changes nothing.

        Raises:
            OptionError: a run is there and may not be overwritten, or the place is no folder.
        """
        if self.out.exists() and not self.out.is_dir():
            raise OptionError(f"--out {str(self.out)!r} is a file; a folder is needed")
        if self._holds_run() and not overwrite:
            raise OptionError(
                f"{str(self.out)!r} holds a run already; choose another folder, or replace it: --overwrite"
            )

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Remove what an earlier run left (and nothing else), then write the manifest."""
        with _named(self.out):
            if self._holds_run():
                self.manifest.unlink(missing_ok=True)  # first, so that a half removed run is no run
                for part in ("shards", "overlays"):
                    if (self.out / part).is_dir():
                        shutil.rmtree(self.out / part)
            (self.out / "shards").mkdir(parents=True, exist_ok=True)
            with whole(self.manifest) as temporary:
                temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def write_shard(self, number: int, rows: Sequence[Row]) -> Path:
        """Write the rows of one shard."""
        path = self.out / "shards" / f"{number:05}.parquet"
        with _named(path), whole(path) as temporary:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), temporary, compression="zstd")
        return path

    def overlay_path(self, key: str, method: str, rank: int = 0) -> Path:
        """Where the overlay of a picture lies; `rank` counts the targets of one picture.

        The picture's whole name stays; names too long for the file system end in a digest of themselves.
        """
        *folders, name = PurePosixPath(key).parts
        suffix = f".{method}.jpg" if rank == 0 else f".{method}.{rank + 1}.jpg"
        return self.out.joinpath("overlays", *map(_fitting, folders), _fitting(name, suffix))

    def _holds_run(self) -> bool:
        return self.manifest.exists() or any((self.out / "shards").glob("*.parquet"))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` when the block ends well, and disappears when not."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _fitting(name: str, suffix: str = "") -> str:
    room = _LONGEST_NAME - len(suffix)
    encoded = name.encode()
    if len(encoded) <= room:
        return name + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: room - 13].decode(errors='ignore')}-{digest}{suffix}"

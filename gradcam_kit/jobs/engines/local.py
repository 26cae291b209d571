"""Turn shards of pictures into shards of rows in one process, with overlapping stages.

Workers read and resize -> a thread copies batches to the device -> the model explains -> threads render and write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from gradcam_kit.functional import Normalization
from gradcam_kit.jobs.request import RunRequest
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.plan import Shard
from gradcam_kit.jobs.storage.counts import Counts, counted
from gradcam_kit.jobs.storage.rows import Row, method_name
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.batches import Batch
from gradcam_kit.jobs.work.explainer import Explained, Explainer
from gradcam_kit.jobs.work.overlays import Painter
from gradcam_kit.jobs.work.reader import Reader, ahead_of, batches, prefetched

Progress = Callable[[int, int], None]
"""Called with the numbers of newly explained pictures and of failures among them."""


@dataclass(frozen=True)
class Done:
    """A shard that has been written."""

    number: int
    counts: Counts


@dataclass
class _Open:
    """A shard in progress."""

    shard: Shard
    rows: list[Row] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    rendering: list[Future[None]] = field(default_factory=list)
    left: int = 0


class FirstFailureError(Exception):
    """A picture failed in a run that stops at the first failure."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts


@dataclass(frozen=True)
class Pipeline:
    """The stages that turn shards of pictures into files, with their model, output folder and callbacks.

    Attributes:
        pictures: number of pictures in the plan, which determines which of them get thumbnails.
        verify: called if no picture of the first batch was explained; raises if the request is at fault.
        begin: called once, after the first batch and before anything is written.
        progress: called after each batch.
    """

    request: RunRequest
    explainer: Explainer
    store: Store
    pictures: int
    verify: Callable[[], None] = lambda: None
    begin: Callable[[], None] = lambda: None
    progress: Progress = lambda explained, failed: None

    def work(self, shards: Iterable[Shard]) -> Generator[Done, None, None]:
        """Write shards in order, each atomically, and yield them.

        Raises:
            GradCamKitError: the model or a method accepts none of the first pictures.
            FirstFailureError: a picture failed, and the run stops at the first failure.
        """
        opened: deque[_Open] = deque()
        written: deque[tuple[_Open, Future[Counts]]] = deque()
        begun = False
        with ExitStack() as stack:
            stack.enter_context(self.explainer.ready())
            threads = self.request.threads
            reader = stack.enter_context(
                Reader(self.explainer.loaded.transform, threads, self.pictures, self.request.processes)
            )
            painter = stack.enter_context(Painter(self.store, threads, normalizations(self.explainer)))
            writer = ThreadPoolExecutor(1)
            stack.callback(writer.shutdown, cancel_futures=True)
            sent = prefetched(self._sent(reader, self._batches(shards, opened)))
            stack.callback(sent.close)
            for batch in sent:
                found = list(self.explainer.explain(batch))
                failed = [explained for explained in found if explained.rows[0]["status"] != "ok"]
                if not begun:
                    if len(failed) == len(found):
                        self.verify()
                    self.begin()
                    begun = True
                current = opened[0]
                self._collect(current, found, painter)
                if self.request.fail_fast and failed:
                    raise FirstFailureError(counted(failed[0].rows))
                self.progress(len(found), len(failed))
                if not current.left:
                    written.append((current, writer.submit(self._write, opened.popleft())))
                while written and (len(written) > 1 or written[0][1].done()):
                    yield _done(*written.popleft())
            while written:
                yield _done(*written.popleft())

    def _batches(self, shards: Iterable[Shard], opened: deque[_Open]) -> Iterator[list[tuple[Entry, bool]]]:
        """Yield the pictures of all shards in batches; no batch spans two shards, so that shards stay independent."""
        for shard in shards:
            opened.append(_Open(shard, left=len(shard.entries)))
            marked = [
                (entry, has_thumbnail(position, self.pictures, self.request.thumbnails))
                for entry, position in zip(shard.entries, shard.positions, strict=True)
            ]
            yield from batches(marked, self.request.batch_size)

    def _sent(self, reader: Reader, marked: Iterable[list[tuple[Entry, bool]]]) -> Iterator[Batch]:
        device = self.explainer.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for items in reader.read(marked, ahead_of(self.request.batch_size, self.request.threads)):
            yield Batch.sent(items, device, stream)

    def _collect(self, current: _Open, found: Iterable[Explained], painter: Painter) -> None:
        wanted = self.request.overlays
        for explained in found:
            position = current.shard.positions[-current.left]
            current.left -= 1
            current.rows.extend(explained.rows)
            if explained.thumbnail is not None:
                current.thumbnails[explained.entry.key] = explained.thumbnail
            if explained.rows[0]["status"] == "ok" and (wanted is None or position < wanted):
                current.rendering.append(painter.add(explained.entry, explained.rows))

    def _write(self, shard: _Open) -> Counts:
        for rendering in shard.rendering:
            rendering.result()
        rows, thumbnails = shard.shard.with_kept(shard.rows), shard.thumbnails
        if shard.shard.kept:
            thumbnails = {**self.store.read_thumbnails(shard.shard.number), **thumbnails}
        return self.store.write_shard(shard.shard.number, rows, thumbnails)


def normalizations(explainer: Explainer) -> Mapping[str, Normalization]:
    """Return how each method normalizes its heatmaps."""
    return {method_name(cam): cam.normalize for cam in explainer.cams}


def has_thumbnail(position: int, pictures: int, wanted: int) -> bool:
    """Whether a picture is one of the evenly spaced pictures with a thumbnail."""
    return position * wanted // pictures != (position + 1) * wanted // pictures if wanted < pictures else True


def _done(shard: _Open, written: Future[Counts]) -> Done:
    return Done(shard.shard.number, written.result())

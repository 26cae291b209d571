"""Turn pictures into model inputs in worker threads or processes; unreadable pictures become errors."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gradcam_kit.errors import PictureError, raise_interruption
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.reading import picture_of
from gradcam_kit.jobs.work.processes import init_worker, sigint_blocked
from gradcam_kit.transforms import Box, Picture, Transform

_T = TypeVar("_T")

_CHUNK = 4  # maximum number of pictures per task of a worker
_FEW = 1000  # maximum number of pictures for which processes are not worth starting
_THUMBNAIL, _QUALITY = 256, 80


@dataclass(frozen=True)
class Decoded:
    """A picture ready for the model.

    Attributes:
        image: result of `Transform.prepare`, the half of the transform that runs in workers.
        box: the part of the picture that the model sees.
        size: height and width of the picture.
        thumbnail: a small JPEG for the report, if requested.
    """

    entry: Entry
    image: UInt8[np.ndarray, "h w c"] | Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"]
    box: Box
    size: tuple[int, int]
    thumbnail: bytes | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        height, width = self.image.shape[1:] if isinstance(self.image, Tensor) else self.image.shape[:2]
        return height, width


@dataclass(frozen=True)
class Failed:
    """A picture that cannot be explained.

    Attributes:
        reason: the type of the error and its message.
        by_transform: whether the picture could be read, but the model's transform failed.
    """

    entry: Entry
    reason: str
    by_transform: bool = False

    @classmethod
    def because(cls, entry: Entry, error: BaseException) -> Failed:
        """Return an error as a failure, because arbitrary exceptions cannot be sent between processes."""
        return cls(entry, one_line(f"{type(error).__name__}: {error}"))


def decode(entry: Entry, transform: Transform, thumbnail: bool = False) -> Decoded | Failed:
    """Read one picture; return any error as a failure instead of raising it."""
    is_read = False
    try:
        with picture_of(entry) as picture:
            size = picture.shape[0], picture.shape[1]
            small = _thumbnail(picture) if thumbnail else None
            is_read = True
            return Decoded(entry, transform.prepare(picture), transform.box(*size), size, small)
    # one picture must not end a run, even if a transform tries to exit the program
    except (Exception, SystemExit) as error:
        raise_interruption(error)
        failed = Failed.because(entry, error)
        return replace(failed, by_transform=is_read and not isinstance(error, PictureError))


class Reader:
    """A context manager whose workers read pictures ahead of their use.

    If `processes` is set, many pictures are read in processes, which avoid the interpreter lock and survive crashes of
    decoders. Few pictures, or pictures whose transform cannot be pickled, are read in threads.

    Args:
        transform: function from picture to model input.
        workers: number of workers.
        pictures: approximate number of pictures to read, None = many; few pictures are read without processes.
        processes: whether processes may be started.
    """

    def __init__(
        self, transform: Transform, workers: int, pictures: int | None = None, processes: bool = False
    ) -> None:
        self._transform = transform
        self._workers = workers
        self._packed = _packed(transform) if processes and (pictures is None or pictures > _FEW) else None
        self._pool = self._start(workers)

    def read(self, batches: Iterable[Sequence[tuple[Entry, bool]]], ahead: int) -> Iterator[list[Decoded | Failed]]:
        """Read batches of pictures, in order.

        Args:
            batches: lists of pictures, each with a flag that requests a thumbnail.
            ahead: number of batches to read ahead; limits the memory.
        """
        waiting: deque[list[tuple[Sequence[tuple[Entry, bool]], Future[list[Decoded | Failed]]]]] = deque()
        try:
            for batch in batches:
                chunks = [batch[start : start + _CHUNK] for start in range(0, len(batch), _CHUNK)]
                waiting.append([(chunk, self._submit(chunk)) for chunk in chunks])
                if len(waiting) > ahead:
                    yield self._collected(waiting.popleft())
            while waiting:
                yield self._collected(waiting.popleft())
        finally:
            for tasks in waiting:
                for _, future in tasks:
                    future.cancel()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _start(self, workers: int) -> Executor:
        if self._packed is None:
            return ThreadPoolExecutor(workers)
        # A forked process would inherit locks held by other threads, and a CUDA context that it cannot use.
        context = multiprocessing.get_context("spawn")
        arguments = (os.getcwd(), self._packed)
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_set_up, initargs=arguments)

    def _submit(self, chunk: Sequence[tuple[Entry, bool]]) -> Future[list[Decoded | Failed]]:
        try:
            if self._packed is None:
                return self._pool.submit(_decode_all, chunk, self._transform)
            with sigint_blocked():
                return self._pool.submit(_decode_all, chunk)
        except BrokenProcessPool as error:
            broken: Future[list[Decoded | Failed]] = Future()
            broken.set_exception(error)
            return broken

    def _collected(
        self, tasks: Iterable[tuple[Sequence[tuple[Entry, bool]], Future[list[Decoded | Failed]]]]
    ) -> list[Decoded | Failed]:
        found: list[Decoded | Failed] = []
        for chunk, future in tasks:
            try:
                found.extend(future.result())
            except BrokenProcessPool:  # noqa: PERF203
                found.extend(self._one_by_one(chunk))
        return found

    def _one_by_one(self, chunk: Sequence[tuple[Entry, bool]]) -> Iterator[Decoded | Failed]:
        """Read the pictures of a task again after a worker died, one after the other, to find the faulty picture.

        A picture is faulty if it kills a worker that has read nothing else. A worker is used as long as it lives,
        because starting a worker takes longer than reading many pictures.
        """
        if getattr(self._pool, "_broken", False):
            self._pool.shutdown(wait=False)
            self._pool = self._start(self._workers)
        waiting = deque(chunk)
        while waiting:
            has_read = False
            with self._start(1) as pool:
                try:
                    while waiting:
                        with sigint_blocked():
                            future = pool.submit(_decode_all, [waiting[0]])
                        yield from future.result()
                        waiting.popleft()
                        has_read = True
                except BrokenProcessPool:
                    if not has_read:
                        reason = "cannot read the picture: the process that read it died"
                        yield Failed.because(waiting.popleft()[0], PictureError(reason))


def ahead_of(batch_size: int, workers: int) -> int:
    """Return how many batches to read ahead: enough for all workers, and at least two."""
    return max(2, -(-2 * workers * _CHUNK // batch_size))


def batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def prefetched(items: Iterable[_T], ahead: int = 1) -> Generator[_T, None, None]:
    """Iterate in a background thread, at most `ahead` items ahead of the consumer."""
    iterator, end = iter(items), object()
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            while True:
                while len(waiting) <= ahead:
                    waiting.append(thread.submit(next, iterator, end))
                item = waiting.popleft().result()
                if item is end:
                    break
                yield item
        finally:
            for future in waiting:
                future.cancel()
            thread.shutdown()
            if hasattr(iterator, "close"):
                iterator.close()


_transform: Transform | None = None  # global state of a worker process


def _decode_all(chunk: Sequence[tuple[Entry, bool]], transform: Transform | None = None) -> list[Decoded | Failed]:
    used = transform or _transform
    assert used is not None
    return [decode(entry, used, thumbnail) for entry, thumbnail in chunk]


def _set_up(folder: str, packed: bytes) -> None:
    """Initialize a worker process."""
    global _transform
    init_worker()
    sys.path.insert(0, folder)  # keep the user's modules importable as long as the transform may need them
    try:
        _transform = pickle.loads(packed)
    finally:
        sys.path.remove(folder)


def _packed(transform: Transform) -> bytes | None:
    with suppress(Exception):  # pickling an arbitrary object may raise anything
        return pickle.dumps(transform)
    return None


def _thumbnail(picture: Picture) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()

"""Pictures become model inputs in worker threads, in order; a picture that cannot be read becomes its error."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.jobs.index import Entry
from gradcam_kit.pictures import read_picture
from gradcam_kit.transforms import Box, Transform

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decoded:
    """A picture ready for the model."""

    entry: Entry
    image: Float[Tensor, "3 h w"]
    box: Box


@dataclass(frozen=True)
class Failed:
    """A picture that cannot be explained, and why."""

    entry: Entry
    error: Exception


def decode(entry: Entry, transform: Transform) -> Decoded | Failed:
    """Read one picture; whatever goes wrong is returned, not raised."""
    try:
        picture = read_picture(entry.path)
        return Decoded(entry, transform(picture), transform.box(*picture.shape[:2]))
    except Exception as error:  # one picture never ends a run
        return Failed(entry, error)


def decoded(entries: Iterable[Entry], transform: Transform, workers: int, ahead: int) -> Iterator[Decoded | Failed]:
    """Read pictures in order.

    Args:
        entries: what to read.
        transform: from picture to model input.
        workers: threads; decoders and resizing release the interpreter, so threads are enough.
        ahead: how many pictures may be read before they are asked for; bounds the memory.
    """
    waiting: deque[Future[Decoded | Failed]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for entry in entries:
                waiting.append(pool.submit(decode, entry, transform))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

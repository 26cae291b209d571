"""Count the changed rows that have gone through the model, so that slow methods can show progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def counting_rows(listener: Callable[[int], None]) -> Iterator[None]:
    """Call `listener` after every pass of changed rows within the block, with the number of rows in the pass.

    Methods that mask images or activations make such passes: rescore, replay and probe. The listener runs between
    passes, in the thread of the method; an exception that the listener raises ends the method.

    Args:
        listener: called with a number of rows, at least 1.

    Example:
        >>> from gradcam_kit import ScoreCAM
        >>> from gradcam_kit.capture import counting_rows
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> counts = []
        >>> with counting_rows(counts.append):
        ...     heatmaps = ScoreCAM(load_demo_model(), "layer4", channels=8)(collate([draw(0)]).images)
        >>> sum(counts)
        8
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def count_rows(rows: int) -> None:
    """Tell the listener, if there is one, that this number of rows was scored."""
    listener = _listener.get()
    if listener is not None:
        listener(rows)

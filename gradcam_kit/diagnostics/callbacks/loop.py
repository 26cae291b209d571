"""Observe a hand-written training loop from beginning to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from gradcam_kit.diagnostics.callbacks.session import Session
from gradcam_kit.diagnostics.watching import ModelDiagnostics


@contextmanager
def watch_loop(
    model: Any,
    *,
    optimizer: Any = None,
    writer: Any = None,
    out: str | PathLike[str] | None = None,
    **options: Any,
) -> Iterator[ModelDiagnostics]:
    """Observe a training loop, and write its report when the block ends, even after an error or an interruption.

    This is `ModelDiagnostics` with a final report: writers receive the last window and the tables and are closed, an
    HTML page is written to `out`, and bad findings are logged as a warning. Training is not affected.

    Args:
        model: the model that is trained.
        optimizer: one or several optimizers; without one, parameters are not measured.
        writer: a `Writer` or a sequence of them.
        out: folder for `diagnostics.jsonl`, which `dashboard(out)` shows live, and for `diagnostics.html`;
            None writes no files.
        options: options of `ModelDiagnostics`, such as `every` and `window`.

    Yields:
        The `ModelDiagnostics` that observes the model.

    Raises:
        OptionError: an option that `ModelDiagnostics` does not have.
        InputError: a writer that has none of the methods of `Writer`, or a model that cannot be observed.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> with watch_loop(model) as diagnostics:
        ...     _ = model(torch.ones(8, 4))
        >>> diagnostics.report().steps
        1
    """
    session = Session(out, writer, None, options)
    diagnostics = session.start(model, optimizer)
    try:
        yield diagnostics
    except BaseException:
        session.stop(failed=True)
        raise
    session.stop(failed=False)

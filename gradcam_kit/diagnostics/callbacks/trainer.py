"""Observe training with Hugging Face: `Trainer(callbacks=[DiagnosticsTrainerCallback()])`."""

from __future__ import annotations

from typing import Any

from gradcam_kit.diagnostics.callbacks.session import SessionCallback
from gradcam_kit.errors import missing_extra

try:
    from transformers import TrainerCallback
except ImportError as _error:
    raise missing_extra("DiagnosticsTrainerCallback needs transformers", "models") from _error


class DiagnosticsTrainerCallback(SessionCallback, TrainerCallback):
    """Observe training with a Hugging Face `Trainer`, except for evaluation.

    The trainer does not notify its callbacks of errors. Use this callback as a context manager around `trainer.train()`
    to remove its hooks after an error, too. Otherwise, the next training run with this callback removes them.

    Args:
        out: folder for `diagnostics.jsonl` and, at the end, `diagnostics.html`; None writes no files.
        writer: a `Writer` or a sequence of them, used on rank 0 and closed at the end.
        heatmaps: a `HeatmapLogger`, whose `step()` is called after each optimizer step on rank 0.
        options: options of `ModelDiagnostics`, such as `layers`, `every` and `window`.

    Raises:
        MissingExtraError: transformers is not installed.
        OptionError: an option that `ModelDiagnostics` does not have.
        InputError: a writer that has none of the methods of `Writer`.

    Example:
        >>> with DiagnosticsTrainerCallback(every=10) as callback:
        ...     ...  # Trainer(model, arguments, callbacks=[callback]).train()
        Ellipsis
    """

    def __enter__(self) -> DiagnosticsTrainerCallback:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._session.stop(failed=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start observing, but pause until the first step."""
        self._session.start(kwargs["model"], getattr(kwargs.get("optimizer"), "optimizer", kwargs.get("optimizer")))
        self._session.pause()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Resume for one optimizer step, so that evaluations between steps are not observed."""
        self._session.resume()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call `step()` of the `HeatmapLogger`, and pause until the next step."""
        self._session.step()
        self._session.pause()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop observing, and merge the reports of all ranks on rank 0."""
        self._session.stop(failed=False)

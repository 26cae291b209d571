"""Write to an existing run of MLflow, in a local store or on a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsInt

from gradcam_kit.diagnostics.writers.files import file_name, strict
from gradcam_kit.diagnostics.writers.protocol import clean_name, compact, picture_of
from gradcam_kit.errors import InputError, kind_of, missing_extra

_MOST_BINS = 128


class MLflowWriter:
    """Write metrics, pictures and tables to an existing MLflow run, without starting or ending a run.

    Histograms and tables are JSON artifacts, because MLflow metrics are single numbers.

    Args:
        run: the result of `mlflow.start_run()` or `MlflowClient.create_run(...)`, or the id of a run.
        client: the `MlflowClient` to log with; None = a client for the current tracking URI.

    Raises:
        MissingExtraError: mlflow is not installed.
        InputError: `run` is neither a run nor the id of a run.
    """

    def __init__(self, run: Any, client: Any = None) -> None:
        self.run_id = run if isinstance(run, str) else getattr(getattr(run, "info", None), "run_id", None)
        if not isinstance(self.run_id, str) or not self.run_id:
            raise InputError(
                f"run is {kind_of(run)}; expected a run of MLflow or its id. This writer never starts a run: pass "
                "mlflow.start_run() or mlflow.active_run()"
            )
        if client is None:
            try:
                from mlflow import MlflowClient
            except ImportError as error:
                raise missing_extra("MLflowWriter needs mlflow", "loggers") from error
            client = MlflowClient()
        self._client = client

    def scalar(self, name: object, value: SupportsFloat, step: SupportsInt) -> None:
        """Log one metric."""
        self._client.log_metric(self.run_id, clean_name(name), float(value), step=int(step))

    def histogram(self, name: object, edges: Any, counts: Any, step: SupportsInt) -> None:
        """Log edges and counts as a JSON artifact in `histograms/`."""
        limits, filled = compact(edges, counts, _MOST_BINS)
        content = {"name": str(name), "step": int(step), "edges": limits.tolist(), "counts": filled.tolist()}
        self._client.log_dict(self.run_id, strict(content), f"histograms/{file_name(name, step, '.json')}")

    def image(self, name: object, hwc: Any, step: SupportsInt) -> None:
        """Log one picture, with its step."""
        self._client.log_image(self.run_id, picture_of(hwc), key=clean_name(name), step=int(step))

    def table(self, name: object, rows: Iterable[Mapping[str, Any]], step: SupportsInt) -> None:
        """Log rows as a JSON artifact in `tables/`."""
        content = {"name": str(name), "step": int(step), "rows": [dict(row) for row in rows]}
        self._client.log_dict(self.run_id, strict(content), f"tables/{file_name(name, step, '.json')}")

    def close(self) -> None:
        """Do nothing, because everything is already logged, and the run belongs to the user."""

"""The history of a layer: constant memory, and the time axis halves its resolution."""

from __future__ import annotations

import numpy as np
import pytest

from gradcam_kit.diagnostics.history import FIELDS, ROWS, History
from gradcam_kit.diagnostics.maths.histogram import COARSE
from gradcam_kit.diagnostics.maths.running_median import RunningMedian


def test_a_full_history_halves_its_resolution() -> None:
    history, rng = History(), np.random.default_rng(0)
    parts = [rng.standard_normal(50) for _ in range(1024)]
    for number, part in enumerate(parts):
        row = dict.fromkeys(FIELDS, 0.0) | {"step": float(number), "elements": 50.0}
        row |= {"mean": part.mean(), "std": part.std(), "min": part.min(), "max": part.max()}
        history.add(row, np.eye(COARSE)[number % COARSE])
    assert len(history.values) == 64
    assert history.windows == 16
    first = np.concatenate(parts[:16])
    assert history.column("mean")[0] == pytest.approx(first.mean(), rel=1e-5)
    assert history.column("std")[0] == pytest.approx(first.std(), rel=1e-5)
    assert history.column("step")[0] == 15
    assert ROWS * (history.values[0].nbytes + history.shares[0].nbytes) <= 10.5 * 1024


def test_a_merged_median_weighs_streams_by_their_length() -> None:
    long, short = RunningMedian(), RunningMedian()
    for number in range(8192):
        long.add(number / 8192)
    for _ in range(200):
        short.add(10.0)
    assert long.stride == 32
    for merged in (long.merge(short), short.merge(long)):
        assert merged.seen == 8392
        assert merged.value == pytest.approx(0.5, abs=0.02)
    assert len(short.values) == 200  # neither has changed

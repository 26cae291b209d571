"""Small pictures of known content, and their comparison, for the tests of the picture side."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


def plain(color: tuple[int, int, int], height: int = 6, width: int = 9) -> UInt8[np.ndarray, "h w 3"]:
    """One color everywhere."""
    return np.full((height, width, 3), color, np.uint8)


def noise(*shape: int, seed: int = 0) -> UInt8[np.ndarray, "*shape"]:
    """Every level, anywhere."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_same(result: np.ndarray, expected: np.ndarray) -> None:
    """Demand an array of the same bytes."""
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)

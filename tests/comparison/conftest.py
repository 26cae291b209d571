"""The model and the pictures that are compared."""

from __future__ import annotations

import pytest

from gradcam_kit.demo import HELD_OUT, collate, draw, load_demo_model


@pytest.fixture(scope="session")
def batch():
    return collate([draw(HELD_OUT + i) for i in range(3)])


@pytest.fixture(scope="session")
def model():
    return load_demo_model()

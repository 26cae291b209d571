"""The bundled demo: pictures of shapes with ground-truth masks, and a small model trained on them."""

from __future__ import annotations

from gradcam_kit.demo.data import (
    CLASS_NAMES,
    HELD_OUT,
    SIZES,
    Batch,
    Sample,
    SamplePicture,
    collate,
    draw,
    draw_batches,
    sample_pictures,
)
from gradcam_kit.demo.network import DemoNet, load_demo_model

__all__ = [
    "CLASS_NAMES",
    "HELD_OUT",
    "SIZES",
    "Batch",
    "DemoNet",
    "Sample",
    "SamplePicture",
    "collate",
    "draw",
    "draw_batches",
    "load_demo_model",
    "sample_pictures",
]

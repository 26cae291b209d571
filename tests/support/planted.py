"""Models, batches and findings for planted faults, those of the table."""

from benchmarks.faults.data import normalized, shapes
from benchmarks.faults.networks import CLASSES, batch, images, labels, network, said

__all__ = ["CLASSES", "batch", "images", "labels", "network", "normalized", "said", "shapes"]

"""Models, batches and findings for planted faults, those of the table."""

from benchmarks.faults.networks import CLASSES, batch, images, labels, network, said

__all__ = ["CLASSES", "batch", "images", "labels", "network", "said"]

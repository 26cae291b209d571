"""Images on their way to the device, and how many of them fit into its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_kit.functional import move
from gradcam_kit.jobs.work.reader import Decoded, Failed


@dataclass(frozen=True)
class Batch:
    """Pictures, read or failed, and the images of those that were read as one tensor on its way to the device."""

    items: Sequence[Decoded | Failed]
    images: Tensor | None = None
    arrived: torch.cuda.Event | None = None

    @classmethod
    def sent(
        cls, items: Sequence[Decoded | Failed], device: torch.device, stream: torch.cuda.Stream | None = None
    ) -> Batch:
        """Start to bring pictures to the device; on a stream of its own, while the model works on others."""
        images = [one.image for one in items if isinstance(one, Decoded)]
        if not images or len({tuple(image.shape) for image in images}) > 1:
            return cls(items)
        stacked = torch.stack([image if isinstance(image, Tensor) else torch.from_numpy(image) for image in images])
        if stream is None:
            return cls(items, move(stacked, device))
        with torch.cuda.stream(stream):
            return cls(items, move(stacked, device), stream.record_event())

    def arrived_images(self) -> Tensor | None:
        """Return the images, for which the device waits; None where they differ in size."""
        if self.images is not None and self.arrived is not None:
            current = torch.cuda.current_stream(self.images.device)
            current.wait_event(self.arrived)
            self.images.record_stream(current)
        return self.images


@dataclass
class Fit:
    """How much fits into the memory of the device at once, as far as it is known; shared by all batches.

    Attributes:
        most: pictures; None = as many as asked for.
        rows: masked rows in one forward pass of a method; None = as many as asked for.
    """

    most: int | None = None
    rows: int | None = None

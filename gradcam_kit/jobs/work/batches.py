"""Copy images to the device, and track how many fit into its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_kit.functional import move
from gradcam_kit.jobs.work.reader import Decoded, Failed


@dataclass(frozen=True)
class Batch:
    """A batch of pictures, and their model inputs on the device.

    Attributes:
        items: the pictures, read or failed.
        images: the model inputs of the pictures that were read; None if none was read or sizes differ.
        arrived: an event that marks the end of the copy, if the copy has a stream of its own.
    """

    items: Sequence[Decoded | Failed]
    images: Tensor | None = None
    arrived: torch.cuda.Event | None = None

    @classmethod
    def sent(
        cls, items: Sequence[Decoded | Failed], device: torch.device, stream: torch.cuda.Stream | None = None
    ) -> Batch:
        """Start copying images to the device, on the given stream so that the model can work on others meanwhile."""
        images = [one.image for one in items if isinstance(one, Decoded)]
        if not images or len({tuple(image.shape) for image in images}) > 1:
            return cls(items)
        stacked = torch.stack([image if isinstance(image, Tensor) else torch.from_numpy(image) for image in images])
        if stream is None:
            return cls(items, move(stacked, device))
        with torch.cuda.stream(stream):
            return cls(items, move(stacked, device), stream.record_event())

    def arrived_images(self) -> Tensor | None:
        """Return the images, for use after their copy on the current stream; None if none was read or sizes differ."""
        if self.images is not None and self.arrived is not None:
            current = torch.cuda.current_stream(self.images.device)
            current.wait_event(self.arrived)
            self.images.record_stream(current)
        return self.images


@dataclass
class Fit:
    """Limits that were found by out-of-memory errors of the device; shared by all batches.

    Attributes:
        most: maximum number of pictures in a batch; None = no limit found.
        rows: maximum number of masked images in one forward pass of a method; None = no limit found.
    """

    most: int | None = None
    rows: int | None = None

"""Images on their way to the device, and how many of them fit into its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_kit.jobs.work.reader import Decoded, Failed


@dataclass(frozen=True)
class Batch:
    """Pictures that were read, and those of them that could be as a tensor, on its way to the device."""

    items: Sequence[Decoded | Failed]
    images: Tensor | None = None
    arrived: torch.cuda.Event | None = None


@dataclass
class Fit:
    """How many pictures fit into the memory of the device at once, as far as that is known; shared by all batches.

    Attributes:
        most: None = as many as asked for.
        say: told when it changes.
    """

    most: int | None = None
    say: Callable[[str], None] = lambda _: None

"""Make and score changed images chunk by chunk, so that memory does not grow with the number of changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gradcam_kit.capture import rows_at_once
from gradcam_kit.metrics.checks import check_heatmaps, check_same_images, check_scores, usable
from gradcam_kit.options import positive_int
from gradcam_kit.types import Rescore

Build = Callable[[Tensor, Tensor], Tensor]
"""A function from indices of images `(m,)` and of their changes `(m,)` to the changed images `(m, c, *t)`."""

_PASSES = 4  # number of forward passes whose rows are made together; on a CPU more rows would not fit into the caches


def score_grid(rescore: Rescore, images: Tensor, steps: int, build: Build, batch_size: int) -> Float[Tensor, "n steps"]:
    """Score `steps` changes of every image.

    Args:
        rescore: function that scores changed images.
        images: `(n, c, *t)`, the images of `rescore`.
        steps: number of changes of each image.
        build: function that makes the rows of a chunk.
        batch_size: maximum number of rows that exist at once; on a CPU fewer if that is faster.
    """
    positive_int("batch_size", batch_size)
    check_same_images(images, rescore)
    if len(images) == 0:
        return images.new_zeros(0, steps, dtype=torch.float32)
    rows = torch.arange(len(images) * steps, device=images.device)
    scores = []
    for chunk in rows.split(min(batch_size, _PASSES * rows_at_once(batch_size, images[:1].nbytes, images.device))):
        index = chunk // steps
        scores.append(check_scores(rescore(build(index, chunk % steps), index), len(chunk)))
    return torch.cat(scores).reshape(len(images), steps)


def score_settings(rescore: Rescore | None) -> dict[str, Any]:
    """Return the settings of the scores: their kind and the origin of the classes."""
    return dict(getattr(rescore, "settings", {"score": "unknown", "classes": "unknown"}))


def sample_index(images: Tensor) -> Int[Tensor, " n"]:
    """Return the index of rows that are the unchanged images: 0 to n - 1."""
    return torch.arange(len(images), device=images.device)


def spread(maps: Shaped[Tensor, "n *t"]) -> Shaped[Tensor, "n 1 *t"]:
    """Return maps that broadcast over the channels of images."""
    return maps.unsqueeze(1)


def masked(heatmaps: Float[Tensor, "n *t"], images: Float[Tensor, "n c *t"]) -> Float[Tensor, "n c *t"]:
    """Return the images times their maps."""
    check_heatmaps(heatmaps, images)
    return (images * spread(usable(heatmaps))).to(images.dtype)


def masked_scores(
    heatmaps: Float[Tensor, "n *t"], images: Float[Tensor, "n c *t"], rescore: Rescore
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the scores of the images (Y) and of the images times their maps (O)."""
    check_same_images(images, rescore)
    changed, index = masked(heatmaps, images), sample_index(images)
    before = check_scores(rescore(images, index), len(images))
    return before, check_scores(rescore(changed, index), len(images))

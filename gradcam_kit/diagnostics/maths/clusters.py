"""Measure the separation of groups of points."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import NonFiniteError, ShapeError

_AT_ONCE = 1024  # number of points per chunk of the distance matrix


def silhouettes(points: Float[Tensor, "n k"], groups: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""Return the silhouette of each point, $(b - a) / \max(a, b)$: Rousseeuw, 1987.

    a is the mean Euclidean distance to the other points of its group, b the smallest mean distance to the points of
    another group. A point that is alone in its group has the silhouette 0.

    Args:
        points: one row per point.
        groups: the group of each point, any integer.

    Returns:
        Values in [-1, 1], float64 on the host: 1 = far from other groups, 0 = between two groups, negative = nearer to
        another group.

    Raises:
        ShapeError: fewer than 2 groups, or unequal numbers of points and group labels.
        NonFiniteError: NaN or infinite values.

    Example:
        >>> silhouettes(torch.tensor([[0.0], [0.0], [4.0], [4.0]]), torch.tensor([0, 0, 1, 1])).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    names, own = groups.cpu().unique(return_inverse=True)
    if len(points) != len(own) or len(names) < 2:
        raise ShapeError(
            f"there are {len(points)} points, {len(own)} labels and {len(names)} groups; expected a label for each "
            "point, and at least 2 groups"
        )
    if not bool(points.isfinite().all()):
        raise NonFiniteError("points hold NaN or infinite values, so distances are undefined; expected finite values")
    wide = points.detach().to("cpu", torch.float64)
    member = torch.nn.functional.one_hot(own, len(names)).double()
    sizes = member.sum(0)
    found = []
    for rows, group in zip(wide.split(_AT_ONCE), own.split(_AT_ONCE), strict=True):
        sums = torch.cdist(rows, wide, compute_mode="donot_use_mm_for_euclid_dist") @ member
        inside = sums.gather(1, group[:, None])[:, 0] / (sizes[group] - 1).clamp(min=1)
        others = (sums / sizes).scatter(1, group[:, None], torch.inf).amin(1)
        largest = torch.maximum(inside, others)
        value = (others - inside) / largest.where(largest > 0, 1.0)
        found.append(value.masked_fill(sizes[group] == 1, 0.0))
    return torch.cat(found)

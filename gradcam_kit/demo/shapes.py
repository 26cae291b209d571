"""Shapes as signed distances, negative inside: antialiased edges, light and shadow follow without a drawing library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "h w"]


def rotate(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Return the coordinates in a frame that is rotated by ``angle`` (radians)."""
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def stroke(knots: Float[np.ndarray, "p 2"], x: Field, y: Field) -> Field:
    """Return the unsigned distance to the line segments between consecutive knots."""
    nearest: Field = np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in pairwise(knots):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(px - ex * along, py - ey * along))
    return nearest


def polygon(corners: Float[np.ndarray, "p 2"], x: Field, y: Field) -> Field:
    """Return the signed distance to a closed polygon, by the even-odd rule."""
    outline = np.concatenate([corners, corners[:1]])
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in pairwise(outline):
        if ay != by:  # count the edges that a ray to the right crosses, except horizontal ones
            inside ^= ((ay > y) != (by > y)) & (x < ax + (bx - ax) * (y - ay) / (by - ay))
    distance: Field = np.where(inside, -1, 1) * stroke(outline, x, y)
    return distance


def pebble(radius: float, stretch: float, phase: float, x: Field, y: Field) -> Field:
    """Return an approximate signed distance, whose sign is exact, to a long, lopsided blob that resembles no class."""
    wobble = 0.15 * np.sin(3 * np.arctan2(y, x / stretch) + phase)
    distance: Field = np.hypot(x / stretch, y) - radius * (1 + wobble)
    return distance


def _corners(radii: Sequence[float]) -> Float[np.ndarray, "p 2"]:
    """Return corners at equal angles, one for each radius."""
    angles = 2 * np.pi / len(radii) * np.arange(len(radii))
    corners: Float[np.ndarray, "p 2"] = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return corners


_TRIANGLE, _SQUARE, _STAR = _corners([1.0] * 3), _corners([1.0] * 4), _corners([1.0, 0.45] * 5)
_BAR = np.array([(1, 1 / 3), (-1, 1 / 3), (-1, -1 / 3), (1, -1 / 3)])

# Class name -> signed distance around the origin, in units of the shape.
SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.76) - 0.24,
    "triangle": lambda x, y: polygon(_TRIANGLE, x, y),
    "square": lambda x, y: polygon(_SQUARE, x, y),
    "star": lambda x, y: polygon(_STAR, x, y),
    "cross": lambda x, y: np.minimum(polygon(_BAR, x, y), polygon(_BAR, y, x)),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.55, y)),
    "heart": lambda x, y: np.minimum(polygon(_SQUARE, x, y), np.hypot(np.abs(x) - 0.5, y + 0.5) - np.sqrt(0.5)),
}


@cache
def extent(name: str) -> tuple[float, float]:
    """Return the area of a shape and its largest distance from the origin, in units of the shape."""
    y, x = np.mgrid[-1.5:1.5:600j, -1.5:1.5:600j]
    inside = SHAPES[name](x, y) < 0
    return 9 * float(inside.mean()), float(np.hypot(x, y)[inside].max())

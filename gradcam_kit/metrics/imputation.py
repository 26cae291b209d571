"""Fill in removed positions from those around them: the noisy linear imputation of ROAD, solved on the device.

A removed position equals the weighted mean of its 8 neighbors, 1/6 for direct and 1/12 for diagonal ones; those outside
of the image are left out. With W the sum over neighbors and D the sum of the weights inside of the image that is
(D - W) v = W v_known on the removed positions: symmetric and positive definite as soon as something is known. Conjugate
gradients solve it without a matrix, one masked 3x3 convolution per step, for all images and channels at once. Where the
removed positions lie together, as in every heatmap, plain steps would be needed by the hundred, so each is
preconditioned by one V-cycle over coarser grids (a coarse cell is removed if all that it covers are), which leaves six
or seven. At this size the time goes into memory, not into arithmetic: works are done in place where they can be.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, pad

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import widen

_DIRECT, _DIAGONAL = 1 / 6, 1 / 12
TOLERANCE = 5e-4
"""What is left of the preconditioned residual. ROAD adds noise of 0.01, forty times the error of a typical position."""

_COARSEST = 4
_SWEEPS = 2  # on each coarser grid, where they cost little and save steps on the fine one
_CHECKED = 3
_MOST_STEPS = 500
_log = logging.getLogger("gradcam_kit")


def impute(
    images: Float[Tensor, "m c h w"], removed: Bool[Tensor, "m h w"], *, tolerance: float = TOLERANCE
) -> Float[Tensor, "m c h w"]:
    """The images with every removed position replaced by the weighted mean of its neighbors.

    Args:
        images: any units.
        removed: which positions, at least one of each image left.
        tolerance: the steps end when the preconditioned residual of each channel is this share of what it was. What
            stays of the error in pictures of 224 x 224, as shares of their deviation: at 5e-4 0.0003 as root mean
            square and 0.01 in the worst position; at 1e-6 nothing that float32 could tell.

    Raises:
        ShapeError: images that have not two position axes.
        OptionError: an image of which nothing is left.
    """
    if images.ndim != 4:
        raise ShapeError(f"imputation needs images (n, c, h, w); got {tuple(images.shape)}")
    if bool(removed.flatten(1).all(1).any()):
        raise OptionError("all positions of an image are removed, so there is nothing to fill them in from; keep some")
    return imputed(images, removed, tolerance).contiguous()


@torch.no_grad()
def imputed(
    images: Float[Tensor, "m c h w"], removed: Bool[Tensor, "m h w"], tolerance: float
) -> Float[Tensor, "m c h w"]:
    """`impute` for those who know that something is left of every image; in any order in memory."""
    values = widen(images)
    with torch.autocast(images.device.type, enabled=False):
        mask = _planes(removed[:, None].expand(images.shape)).to(values.dtype)
        stencils, planes = _Stencils(mask), _planes(values)
        known = torch.addcmul(planes, planes, mask, value=-1)
        right = stencils.neighbors(known).mul_(mask)
        solution = _solve(_levels(mask, stencils), right, tolerance)
    return solution.add_(known).reshape(images.shape)


@dataclass(frozen=True)
class _Level:
    """A grid.

    Attributes:
        weight: D, the sum of the weights inside of the image.
        scaled: 1/D where something is removed, else 0.
        moved: what a coarser grid moves: 1 where something is removed, else 0, and more along the borders, because
            the interpolation sees zeros beyond them.
        sweeps: of Jacobi, before and after the coarser grid.
    """

    weight: Float[Tensor, "1 1 h w"]
    scaled: Float[Tensor, "1 p h w"]
    moved: Float[Tensor, "1 p h w"]
    sweeps: int
    stencils: _Stencils


def _planes(images: Tensor) -> Tensor:
    """All channels of all images as the channels of one; innermost in memory on a CPU, as its kernels want."""
    planes = images.reshape(1, -1, *images.shape[2:])
    layout = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
    return planes.contiguous(memory_format=layout)


def _levels(mask: Float[Tensor, "1 p h w"], stencils: _Stencils) -> list[_Level]:
    """The grid itself and coarser ones, each of half the size."""
    levels: list[_Level] = []
    while True:
        height, width = mask.shape[2:]
        weight = _Stencils(mask[:, :1]).neighbors(torch.ones_like(mask[:, :1]))
        borders = torch.outer(_border(height, mask), _border(width, mask))
        levels.append(_Level(weight, mask * weight.reciprocal(), mask * borders, _SWEEPS if levels else 1, stencils))
        if min(height, width) <= _COARSEST:
            return levels
        mask = (avg_pool2d(_even(mask, 1.0), 2) > 1 - 1e-3).to(mask.dtype)


def _border(length: int, like: Tensor) -> Tensor:
    """What the share of a cell's own coarse cell, 3/4, has to be multiplied with where there is no other: 4/3."""
    factors = like.new_ones(length)
    factors[:: length - 1 if length % 2 == 0 else length] = 4 / 3
    return factors


def _solve(levels: list[_Level], right: Float[Tensor, "1 p h w"], tolerance: float) -> Float[Tensor, "1 p h w"]:
    """Preconditioned conjugate gradients; a plane that has converged stands still while others go on.

    `right` becomes the residual. Off the mask it is left to itself: nothing reads it there.
    """
    fine, pause = levels[0], 1 if right.device.type == "cpu" else _CHECKED
    residual, solution, room = right, torch.zeros_like(right), torch.empty_like(right)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.mul(a, b, out=room).sum((2, 3), keepdim=True)

    preconditioned = direction = _cycle(levels, residual)
    product = dot(residual, direction)
    goal = tolerance**2 * product
    running = product > goal
    for step in range(1, _MOST_STEPS):
        # The negative of A times the direction.
        changed = fine.stencils.neighbors(direction).addcmul_(fine.weight, direction, value=-1)
        length = (product / dot(direction, changed)).where(running, 0)  # negative too
        solution.addcmul_(length, direction, value=-1)
        residual.addcmul_(length, changed, value=-1)
        preconditioned = _cycle(levels, residual)
        before, product = product, dot(residual, preconditioned)
        running = product > goal
        # Elsewhere than on a CPU it is asked in every few steps only, because the answer has to be waited for.
        is_last = step == _MOST_STEPS - 1
        if (is_last or step % pause == 0) and not bool(running.any()):
            break
        if is_last:
            _log.warning("the imputation of ROAD did not converge in %d steps", _MOST_STEPS)
            break
        direction = preconditioned.addcmul_((product / before).where(running, 0), direction)
    return solution.add_(preconditioned)  # a good guess of what is still missing, which is there anyway


def _cycle(levels: list[_Level], residual: Float[Tensor, "1 p h w"]) -> Float[Tensor, "1 p h w"]:
    """One V-cycle for A z = residual from z = 0, with sweeps of Jacobi before and after the coarser grid.

    Without damping: high frequencies shrink to a third for this stencil. What a sweep from z to z + change leaves of
    the residual is W change.
    """
    level, coarser = levels[0], levels[1:]
    neighbors = level.stencils.neighbors
    correction = change = first = level.scaled * residual
    for _ in range(level.sweeps - 1):
        change = neighbors(change).mul_(level.scaled)
        correction = correction + change
    if coarser:
        left = neighbors(change).mul_(level.moved)
        finer = level.stencils.prolong(_cycle(coarser, level.stencils.restrict(left)), left)
        correction = torch.addcmul(correction, level.moved, finer, out=finer)
    for _ in range(level.sweeps):
        around = neighbors(correction)
        correction = torch.addcmul(first, level.scaled, around, out=around)
    return correction


class _Stencils:
    """The convolutions of all levels, for one number of planes."""

    def __init__(self, planes: Float[Tensor, "1 p h w"]) -> None:
        self.count = planes.shape[1]
        # Made on the device, which would have to be waited for if they came from the host.
        away = torch.arange(-1, 2, device=planes.device).abs()
        away = away[:, None] + away
        near = (torch.arange(4, device=planes.device) - 1.5).abs() < 1
        linear = 0.25 + 0.5 * near
        self.kernel = self._for_each(_DIRECT * (away == 1).double() + _DIAGONAL * (away == 2).double(), planes)
        self.linear = self._for_each(torch.outer(linear, linear), planes)

    def neighbors(self, planes: Float[Tensor, "1 p h w"]) -> Float[Tensor, "1 p h w"]:
        """The weighted sum over the 8 neighbors inside of the image."""
        return conv2d(planes, self.kernel, padding=1, groups=self.count)

    def restrict(self, planes: Float[Tensor, "1 p h w"]) -> Float[Tensor, "1 p a b"]:
        """The adjoint of `prolong`."""
        return conv2d(_even(planes, 0.0), self.linear, stride=2, padding=1, groups=self.count)

    def prolong(self, planes: Float[Tensor, "1 p a b"], like: Float[Tensor, "1 p h w"]) -> Float[Tensor, "1 p h w"]:
        """Linear interpolation to the finer grid, with zeros beyond the borders."""
        finer = conv_transpose2d(planes, self.linear, stride=2, padding=1, groups=self.count)
        return finer[..., : like.shape[2], : like.shape[3]]

    def _for_each(self, kernel: Tensor, like: Tensor) -> Tensor:
        return kernel.to(like.dtype).expand(self.count, 1, -1, -1).contiguous()


def _even(planes: Tensor, beyond: float) -> Tensor:
    height, width = planes.shape[2:]
    return pad(planes, (0, width % 2, 0, height % 2), value=beyond) if height % 2 or width % 2 else planes

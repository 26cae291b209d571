"""Fill in removed positions from their neighbors: the noisy linear imputation of ROAD, solved on the device.

A removed position equals the weighted mean of its 8 neighbors, 1/6 for direct and 1/12 for diagonal ones; neighbors
outside the image are left out. With W the sum over neighbors and D the sum of the weights inside the image, this is the
system (D - W) v = W v_known on the removed positions. It is symmetric and positive definite as soon as one position is
known. Conjugate gradients solve it without a matrix, with one masked 3x3 convolution per step, for all images and
channels at once. If the removed positions are contiguous, as with most heatmaps, hundreds of plain steps would be
needed. So each step is preconditioned by one W-cycle over coarser grids, and four to six steps suffice for photographs.

A coarser grid has no known positions. Instead, its system D + K - W contains the weights of the known neighbors of
removed positions, K = D - W on the finest grid, summed with the weights of the interpolation from grid to grid. With K,
corrections do not overshoot for any mask: the eigenvalues of the preconditioned system are at most about 1.

Tensors in this module have images as the channel axis and channels as the batch axis, so that the channels of an image
share a mask. Memory traffic, not arithmetic, dominates the cost, so operations are done in place where possible.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, pad

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import at_least_float32

_DIRECT, _DIAGONAL = 1 / 6, 1 / 12
TOLERANCE = 5e-4
"""Remaining share of the preconditioned residual. The error that it leaves is far below the noise of 0.01 in ROAD."""

_COARSEST = 4
# grids larger than this, except the finest, visit the next coarser grid twice; smaller grids would gain too little
_TWICE = 16
_CHECKED = 2
_MOST_STEPS = 500
_log = logging.getLogger("gradcam_kit")


def impute(
    images: Float[Tensor, "m c h w"], removed: Bool[Tensor, "m h w"], *, tolerance: float = TOLERANCE
) -> Float[Tensor, "m c h w"]:
    """Return the images with every removed position replaced by the weighted mean of its neighbors.

    Args:
        images: images in any units.
        removed: True at removed positions; at least one position of each image must remain.
        tolerance: the steps end when the preconditioned residual of each channel has fallen to this share of its
            initial value. In images of 224 x 224, a tolerance of 5e-4 leaves a root mean square error of 0.0002
            standard deviations of the image, and 0.002 at the worst position.

    Raises:
        ShapeError: images without exactly two position axes.
        OptionError: an image whose positions are all removed.
    """
    if images.ndim != 4:
        raise ShapeError(f"imputation needs images (n, c, h, w); got {tuple(images.shape)}")
    if bool(removed.flatten(1).all(1).any()):
        raise OptionError(
            "all positions of an image are removed, so there is nothing to impute from; keep at least one in each image"
        )
    return imputed(images, removed, tolerance, Workspace()).contiguous()


class Workspace:
    """Memory reused for consecutive chunks of images. On a CPU, new allocations would take a fifth of the time.

    On other devices nothing is kept, because allocation is fast there and the model needs the memory in between.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the uninitialized memory of a name. On a CPU, images are the innermost axis, as its kernels prefer."""
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype, kept.device) != (shape, like.dtype, like.device):
            layout = torch.channels_last if like.device.type == "cpu" else torch.contiguous_format
            kept = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
            if like.device.type == "cpu":
                self._kept[name] = kept
        return kept


@torch.no_grad()
def imputed(
    images: Float[Tensor, "m c h w"], removed: Bool[Tensor, "m h w"], tolerance: float, room: Workspace
) -> Float[Tensor, "m c h w"]:
    """Impute without the check that every image has known positions.

    The result lies in `room`, in any memory format, and is valid until the next call with the same `room`.
    """
    if len(images) == 1 and images.is_cuda:  # on CUDA, convolutions with a single group would round to TF32
        twice = images.expand(2, -1, -1, -1), removed.expand(2, -1, -1)
        return imputed(*twice, tolerance, room)[:1]
    values = at_least_float32(images).transpose(0, 1)
    with torch.autocast(images.device.type, enabled=False):
        mask = room("mask", (1, *removed.shape), values).copy_(removed)
        known = room("known", values.shape, values).copy_(values)
        known.addcmul_(known, mask, value=-1)
        # Subtract the mean of the known values: it would dominate the first residual, and the steps would end too soon.
        middle = known.sum((2, 3), keepdim=True) / (1 - mask).sum((2, 3), keepdim=True)
        known.sub_(middle).addcmul_(middle, mask)
        solution = _solve(_levels(mask, len(known), room), known, tolerance, room).add_(middle)
        return torch.where(mask.bool(), solution, values, out=known).transpose(0, 1)


@dataclass(frozen=True)
class _Level:
    """A grid of the multigrid cycle.

    Attributes:
        weight: D, the sum of the weights inside the image.
        scaled: the reciprocal of D + K, but 0 at known positions of the finest grid.
        moved: factor of corrections from a coarser grid. It is 1, but 0 at known positions of the finest grid, and
            larger along the borders, because the interpolation assumes zeros beyond them.
        visits: number of visits of the next coarser grid.
        first: memory for the result of the first sweep, and finally of the whole cycle.
        work: memory for intermediate results.
        stencils: the convolutions, which all levels share.
    """

    weight: Float[Tensor, "1 1 h w"]
    scaled: Float[Tensor, "1 m h w"]
    moved: Float[Tensor, "1 #m h w"]
    visits: int
    first: Float[Tensor, "c m h w"]
    work: Float[Tensor, "c m h w"]
    stencils: _Stencils


def _levels(mask: Float[Tensor, "1 m h w"], channels: int, room: Workspace) -> list[_Level]:
    """Return the finest grid and the coarser grids, each of which has half the size of the previous one."""
    stencils = _Stencils(mask)
    weight, borders = _frame(mask)
    scaled = torch.mul(mask, weight.reciprocal(), out=room("scaled", mask.shape, mask))
    moved = torch.mul(mask, borders, out=room("moved", mask.shape, mask))
    held = (weight - stencils.neighbors(mask)).mul_(mask)
    levels: list[_Level] = []
    while True:
        shape = (channels, *held.shape[1:])
        visits = 2 if levels and min(shape[2:]) > _TWICE else 1
        first, work = (room(f"{name} {len(levels)}", shape, mask) for name in ("first", "work"))
        levels.append(_Level(weight, scaled, moved, visits, first, work, stencils))
        if min(shape[2:]) <= _COARSEST:
            return levels
        held = stencils.restrict(held)
        weight, moved = _frame(held)
        scaled = (held + weight).reciprocal_()


def _frame(planes: Float[Tensor, "1 m h w"]) -> tuple[Float[Tensor, "1 1 h w"], Float[Tensor, "1 1 h w"]]:
    """Return D of a grid, and the factors that correct an interpolation at its borders."""
    height, width = planes.shape[2:]
    above, beside = _adjacent(height, planes)[:, None], _adjacent(width, planes)
    weight = _DIRECT * (above + beside) + _DIAGONAL * above * beside
    borders = torch.outer(_border(height, planes), _border(width, planes))
    return weight.clamp_(min=_DIAGONAL)[None, None], borders[None, None]  # a single position has D = 0: avoid 1 / 0


def _adjacent(length: int, like: Tensor) -> Tensor:
    """Return the number of neighbors along an axis: 2, and one less at each end."""
    counts = like.new_full((length,), 2)
    counts[0] -= 1
    counts[-1] -= 1
    return counts


def _border(length: int, like: Tensor) -> Tensor:
    """Return 4/3 for cells that a single coarse cell interpolates with weight 3/4, and 1 for all other cells."""
    factors = like.new_ones(length)
    factors[:: length - 1 if length % 2 == 0 else length] = 4 / 3
    return factors


def _solve(
    levels: list[_Level], known: Float[Tensor, "c m h w"], tolerance: float, room: Workspace
) -> Float[Tensor, "c m h w"]:
    """Run preconditioned conjugate gradients. Planes that have converged are left unchanged while others continue.

    Outside the mask the residual may have any value, because nothing reads it there.
    """
    fine, pause = levels[0], 1 if known.device.type == "cpu" else _CHECKED
    residual = fine.stencils.neighbors(known)
    solution = room("solution", residual.shape, residual).zero_()

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.mul(a, b, out=fine.work).sum((2, 3), keepdim=True)

    preconditioned = _cycle(levels, residual)
    direction = room("direction", residual.shape, residual).copy_(preconditioned)
    product = dot(residual, preconditioned)
    goal = tolerance**2 * product.abs()
    running = product.abs() > goal
    for step in range(1, _MOST_STEPS + 1):
        # The direction times W - D, the negative of the matrix of the system.
        changed = fine.stencils.neighbors(direction).addcmul_(fine.weight, direction, value=-1)
        length = (product / dot(direction, changed)).where(running, 0)  # step length, which may be negative
        solution.addcmul_(length, direction, value=-1)
        residual.addcmul_(length, changed, value=-1)
        del changed
        preconditioned = _cycle(levels, residual)
        before, product = product, dot(residual, preconditioned)
        running = product.abs() > goal
        # On devices other than a CPU, check for convergence only every few steps, because it synchronizes.
        is_last = step == _MOST_STEPS
        if (is_last or step % pause == 0) and not bool(running.any()):
            break
        if is_last:
            _log.warning("the imputation of ROAD did not converge in %d steps", step)
            break
        torch.addcmul(preconditioned, (product / before).where(running, 0), direction, out=direction)
    return solution.add_(preconditioned)  # a good estimate of the remaining error, and already computed


def _cycle(levels: list[_Level], residual: Float[Tensor, "c m h w"]) -> Float[Tensor, "c m h w"]:
    """Run one W-cycle for (D - W) z = residual from z = 0.

    Jacobi sweeps run before, between and after visits of a coarser grid. They need no damping, because this stencil
    reduces high frequencies to a third. After a sweep from z to z + change, the residual is W change.
    """
    level, coarser = levels[0], levels[1:]
    neighbors, work = level.stencils.neighbors, level.work
    correction = change = first = torch.mul(level.scaled, residual, out=level.first)
    for visit in range(level.visits if coarser else 0):
        if visit:
            swept = neighbors(correction)
            torch.addcmul(first, level.scaled, swept, out=swept)
            change, correction = torch.sub(swept, correction, out=work), swept
        left = torch.mul(neighbors(change), level.moved, out=work)
        finer = level.stencils.prolong(_cycle(coarser, level.stencils.restrict(left)), left)
        correction = torch.addcmul(correction, level.moved, finer, out=work)
    return torch.addcmul(first, level.scaled, neighbors(correction), out=first)


class _Stencils:
    """The convolutions of all levels, for a fixed number of images."""

    def __init__(self, planes: Float[Tensor, "1 m h w"]) -> None:
        self.count = planes.shape[1]
        # Made on the device, because a copy from the host would synchronize.
        away = torch.arange(-1, 2, device=planes.device).abs()
        away = away[:, None] + away
        near = (torch.arange(4, device=planes.device) - 1.5).abs() < 1
        linear = 0.25 + 0.5 * near
        self.kernel = self._for_each(_DIRECT * (away == 1).double() + _DIAGONAL * (away == 2).double(), planes)
        self.linear = self._for_each(torch.outer(linear, linear), planes)

    def neighbors(self, planes: Float[Tensor, "c m h w"]) -> Float[Tensor, "c m h w"]:
        """Return the weighted sum over the 8 neighbors inside the image."""
        return conv2d(planes, self.kernel, padding=1, groups=self.count)

    def restrict(self, planes: Float[Tensor, "c m h w"]) -> Float[Tensor, "c m a b"]:
        """Map planes to the coarser grid with the adjoint of `prolong`."""
        return conv2d(_even(planes), self.linear, stride=2, padding=1, groups=self.count)

    def prolong(self, planes: Float[Tensor, "c m a b"], like: Float[Tensor, "c m h w"]) -> Float[Tensor, "c m h w"]:
        """Interpolate linearly to the finer grid, with zeros beyond the borders."""
        finer = conv_transpose2d(planes, self.linear, stride=2, padding=1, groups=self.count)
        return finer[..., : like.shape[2], : like.shape[3]]

    def _for_each(self, kernel: Tensor, like: Tensor) -> Tensor:
        return kernel.to(like.dtype).expand(self.count, 1, -1, -1).contiguous()


def _even(planes: Tensor) -> Tensor:
    height, width = planes.shape[2:]
    return pad(planes, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else planes

"""Read only the local part of tensors that are distributed over processes (DTensor, as created by `fully_shard`).

Reading more takes a collective operation, in which a process would wait forever if the other processes did not join.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """Which part of a tensor a process holds.

    Attributes:
        place: the coordinates of the part in the mesh of processes; replicas of a part have the same coordinates.
        parts: the number of parts.
    """

    place: tuple[int, ...]
    parts: int


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this process holds, detached, and any other tensor unchanged."""
    spread: Any = tensor
    return spread.detach().to_local() if is_spread(tensor) else tensor


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, judged without importing the type, because the import takes a second."""
    kind = type(tensor)
    return kind is not Tensor and hasattr(kind, "to_local") and hasattr(tensor, "placements")


def shard_of(tensor: Tensor) -> Shard | None:
    """Return which part of a DTensor the process holds, or None if it holds the full tensor."""
    spread: Any = tensor
    if not is_spread(tensor):
        return None
    axes = [axis for axis, placement in enumerate(spread.placements) if not placement.is_replicate()]
    parts = math.prod(spread.device_mesh.size(axis) for axis in axes)
    place = spread.device_mesh.get_coordinate() or ()
    return Shard(tuple(place[axis] for axis in axes if axis < len(place)), parts) if parts > 1 else None


def flat_shards(model: nn.Module) -> dict[int, Shard]:
    """Return the shards of the parameters inside FullyShardedDataParallel modules (FSDP1), by `id(parameter)`.

    Each process holds such a parameter as a plain tensor that contains only a slice, which may be empty.
    """
    found = {}
    for module in model.modules():
        own: Any = module
        if type(module).__name__ != "FullyShardedDataParallel" or own.sharding_strategy.name == "NO_SHARD":
            continue
        if own.world_size > 1:
            found.update({id(one): Shard((own.rank,), own.world_size) for one in module.parameters()})
    return found

"""Names of overlays: one for each picture, method and target, always inside the folder of its run."""

from __future__ import annotations

import hashlib

_LONGEST_NAME = 255  # bytes, on all common file systems


def overlay_name(key: str, method: str, rank: int = 0) -> str:
    """Return where the overlay of a picture lies; `rank` counts the targets of one picture.

    The picture's whole name stays; names too long for the file system end in a digest of themselves.
    """
    *folders, name = key.split("/")
    suffix = f".{method}.jpg" if rank == 0 else f".{method}.{rank + 1}.jpg"
    return "/".join(["overlays", *map(_inside, folders), _fitting(name, suffix)])


def _inside(part: str) -> str:
    """Return a folder's name that stays inside the run's folder, also for a key that leads upwards."""
    return f"-{hashlib.sha256(part.encode()).hexdigest()[:12]}" if part in {"", ".", ".."} else _fitting(part)


def _fitting(name: str, suffix: str = "") -> str:
    room = _LONGEST_NAME - len(suffix)
    encoded = name.encode()
    if len(encoded) <= room:
        return name + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: room - 13].decode(errors='ignore')}-{digest}{suffix}"

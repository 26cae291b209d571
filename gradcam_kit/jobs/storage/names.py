"""Names of overlays: one for each picture, method and target, always inside the folder of its run."""

from __future__ import annotations

import hashlib

_LONGEST_NAME = 255  # longest file name in bytes on all common file systems


def overlay_name(key: str, method: str, rank: int = 0) -> str:
    """Return the path of a picture's overlay; `rank` counts the targets of one picture.

    A name that is too long for a file system is shortened, and a digest of the full name precedes the suffix.
    """
    *folders, name = key.split("/")
    suffix = f".{method}.jpg" if rank == 0 else f".{method}.{rank + 1}.jpg"
    return "/".join(["overlays", *map(_inside, folders), _fitting(name, suffix)])


def _inside(part: str) -> str:
    """Return a folder name that stays inside the run's folder, even for a key with `..`."""
    return f"-{hashlib.sha256(part.encode()).hexdigest()[:12]}" if part in {"", ".", ".."} else _fitting(part)


def _fitting(name: str, suffix: str = "") -> str:
    room = _LONGEST_NAME - len(suffix)
    encoded = name.encode()
    if len(encoded) <= room:
        return name + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: room - 13].decode(errors='ignore')}-{digest}{suffix}"

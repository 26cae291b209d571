"""Turn a class into a method: its annotated attributes become options, and its name is registered in `METHODS`."""

from __future__ import annotations

import inspect
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import dataclass_transform

from gradcam_kit.errors import OptionError, UnknownNameError
from gradcam_kit.foreign import says_what_it_is_here
from gradcam_kit.methods.contract import METHODS
from gradcam_kit.targets.classes import ClassLogit, ClassTarget
from gradcam_kit.types import Evidence, LayerChoice


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(field,))
class Declared:
    """Base class of methods, with the attributes that describe a method class and are not its options."""

    name: ClassVar[str] = ""
    needs: Evidence = Evidence.GRADIENTS
    """Evidence that the method needs beyond activations."""
    layer_choice: LayerChoice = LayerChoice.LAST
    """The layers that `target_layers=None` chooses."""
    class_agnostic: bool = False
    """Whether the map is the same for every class."""
    target_type: type[ClassTarget] = ClassLogit
    """The target type that scores plain class indices."""
    cost: ClassVar[str] = "F + B"
    """Cost in passes, for k channels and Z positions.

    F is a forward pass, B a backward pass from the score to the layer, R a forward pass of one masked row, and S a pass
    through the part after the layer.
    """
    paper: ClassVar[str] = ""
    """Source of the method: paper or library."""

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = name
        documentation = getattr(sys.modules.get(cls.__module__), "__doc__", None) or cls.__doc__ or ""
        _keep_renamed_hook(cls)
        _declare_options(cls)
        if not name:
            return
        # A reloaded module or a notebook cell that runs twice defines the same class again, which is not a conflict.
        taken = METHODS.get(name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UnknownNameError(f"the method name {name!r} is taken by {taken.__name__}; choose another name")
        cls.paper = cls.__dict__.get("paper", documentation.strip().partition("\n")[0])
        METHODS[name] = cls


def _declare_options(cls: type[Declared]) -> None:
    """Turn a method class into a dataclass whose options are its public annotated attributes with a default.

    A hand-written `__init__`, in the class or in a base class, is kept.
    """
    annotations = inspect.get_annotations(cls)
    with suppress(Exception):  # names imported under TYPE_CHECKING cannot be resolved and remain strings
        annotations = inspect.get_annotations(cls, eval_str=True)
    described = Declared.__annotations__
    options = {
        name: kind
        for name, kind in annotations.items()
        if name in vars(cls) and not name.startswith("_") and name not in described
    }
    for name, inherited in getattr(cls, "__dataclass_fields__", {}).items():
        if name in vars(cls) and not hasattr(vars(cls)[name], "__get__"):
            options.setdefault(name, inherited.type)  # a new default of an inherited option, without annotation
    for name in options:
        hidden = next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)
        if inspect.isfunction(hidden):
            raise OptionError(
                f"{cls.__name__} declares an option {name!r}, which hides the method {hidden.__qualname__}; rename the "
                "option"
            )
    cls.__annotations__ = options
    maker = next(base for base in cls.__mro__ if "__init__" in vars(base))
    declared = maker is object or "_constructor_is_declared" in vars(maker)
    documentation = cls.__doc__
    dataclass(init=declared, repr=False, eq=False, match_args=False, kw_only=True)(cls)
    cls.__doc__ = documentation  # `dataclass` replaces a missing docstring by the signature
    cls.__annotations__ = {**options, **annotations}
    if declared:
        setattr(cls, "__init__", says_what_it_is_here(getattr(cls, "__init__")))  # noqa: B009, B010
        cls._constructor_is_declared = True  # type: ignore[attr-defined]
    elif maker is cls:
        _spell_out_options(cls)


def _spell_out_options(cls: type[Declared]) -> None:
    """Set the `__signature__` of a hand-written constructor with `**options`, so that `help` shows the options."""
    own = inspect.signature(cls.__init__).parameters.values()
    if not any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in own):
        return
    inherited = inspect.signature(cls.__mro__[1].__init__).parameters.values()  # type: ignore[misc]
    named = {one.name for one in own}
    shown = []
    for one in own:
        if one.kind is one.VAR_POSITIONAL:
            handed_on = [other for other in inherited if other.kind is other.POSITIONAL_OR_KEYWORD]
            shown += [other for other in handed_on[1:] if other.name not in named]
        elif one.kind is one.VAR_KEYWORD:
            shown += [other for other in inherited if other.kind is other.KEYWORD_ONLY and other.name not in named]
        else:
            shown.append(one)
    with suppress(ValueError):  # no signature allows this order of parameters: keep the written one
        cls.__init__.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]


def _keep_renamed_hook(cls: type[Declared]) -> None:
    """Accept `importance(layer)`, the earlier name of `layer_importance`, for one release."""
    if inspect.isfunction(vars(cls).get("importance")):
        warnings.warn(
            f"{cls.__name__}.importance(layer) is now called layer_importance(layer)", DeprecationWarning, stacklevel=4
        )
        cls.layer_importance = vars(cls)["importance"]  # type: ignore[attr-defined]

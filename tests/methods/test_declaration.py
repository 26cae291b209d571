"""Annotated attributes of a method class are options: in the constructor, in copies, and in what is shown."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any, ClassVar, get_type_hints

import pytest
from models import images, tiny
from torch import Tensor, nn

from gradcam_kit import ISCAM, BaseCAM, GradCAM, HiResCAM, LayerCAM
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import Fusion
from gradcam_kit.types import Evidence, LayerCapture

INPUT = images(3, size=(8, 8))
COMMON = ("reshape", "fusion", "normalize", "batch_size", "keep_modes", "image_input", "gradient_rule")


class Sharp(BaseCAM):
    """At the top of the module, so that it can be pickled."""

    sharpness: float = 2.0
    needs: Evidence = Evidence.GRADIENTS  # describes the class, annotated or not

    def check_options(self) -> None:
        if self.sharpness <= 0:
            raise OptionError(f"sharpness is {self.sharpness!r}; expected a number above 0")

    def weights(self, layer: LayerCapture) -> Tensor:
        return layer.gradients.sign() * layer.gradients.abs() ** self.sharpness


def test_annotated_attributes_are_options() -> None:
    assert list(inspect.signature(Sharp).parameters) == ["model", "target_layers", *COMMON, "sharpness"]
    cam = Sharp(tiny(), "relu2", sharpness=3.0, batch_size=2)
    assert repr(cam) == "Sharp(TinyCNN, layers=['relu2'], batch_size=2, sharpness=3.0)"
    assert cam(INPUT).shape == (3, 8, 8)
    assert Sharp(tiny(), "relu2", sharpness=1.0)(INPUT).equal(HiResCAM(tiny(), "relu2")(INPUT))
    with pytest.raises(OptionError, match=r"^sharpness is -1\.0"):
        Sharp(tiny(), sharpness=-1.0)
    with pytest.raises(TypeError, match="positional"):
        Sharp(tiny(), "relu2", 3.0)
    assert Sharp.__doc__ == "At the top of the module, so that it can be pickled."
    assert type("Own", (BaseCAM,), {}).__doc__ is None


def test_methods_are_copied_and_pickled_with_their_options() -> None:
    cam = Sharp(tiny(), "relu2", sharpness=3.0)
    expected = cam(INPUT)
    for other in (copy.deepcopy(cam), pickle.loads(pickle.dumps(cam)), dataclasses.replace(cam, batch_size=3)):
        assert other.sharpness == 3.0
        assert other(INPUT).equal(expected)
    assert cam != copy.copy(cam)
    assert len({cam, copy.copy(cam)}) == 2


def test_a_subclass_changes_defaults_and_adds_options() -> None:
    class Sharper(Sharp):
        sharpness = 5.0  # without an annotation
        fusion: Fusion = "max"
        strength: int = 1

    cam = Sharper(tiny())
    assert (cam.sharpness, cam.fusion, cam.strength) == (5.0, "max", 1)
    assert list(inspect.signature(Sharper).parameters) == [*inspect.signature(Sharp).parameters, "strength"]
    with pytest.raises(OptionError, match="sharpness"):
        Sharper(tiny(), sharpness=0.0)


def test_a_constructor_written_by_hand_is_inherited() -> None:
    class Own(BaseCAM):
        def __init__(self, model: nn.Module, target_layers: Any = None, *, fill: float = 0.0, **options: Any) -> None:
            super().__init__(model, target_layers, **options)
            self.fill = fill + 1

    class Further(Own):
        pass

    class Mixin:
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.mixed = True

    class Mixed(Mixin, Sharp):
        pass

    assert Further(tiny(), fill=2.0, batch_size=3).fill == 3.0
    assert Mixed(tiny(), sharpness=3.0).mixed


def test_layers_are_given_as_another_method_has_them() -> None:
    cam = GradCAM(tiny(), ["relu1", "relu2"])
    other = LayerCAM(cam.model, cam.target_layers)
    assert list(other.target_layers or ()) == ["relu1", "relu2"]


def test_attributes_that_are_not_options() -> None:
    class Own(BaseCAM):
        strength: float = 1.0
        found: Tensor  # no default
        _cache: dict[str, Tensor] = {}  # noqa: RUF012 - private
        kinds: ClassVar[list[str]] = []

    assert list(inspect.signature(Own).parameters) == ["model", "target_layers", *COMMON, "strength"]
    assert set(inspect.get_annotations(Own)) == {"strength", "found", "_cache", "kinds"}


def test_an_option_cannot_hide_a_method_of_the_base() -> None:
    with pytest.raises(OptionError, match=r"^Own declares an option 'scale', which hides the method BaseCAM\.scale"):
        type("Own", (BaseCAM,), {"scale": 2.0, "__annotations__": {"scale": float}})


def test_the_earlier_name_of_layer_importance_is_taken_for_one_release() -> None:
    def importance(self: BaseCAM, layer: LayerCapture) -> Tensor:
        return layer.gradients.flatten(1).amax(1)

    with pytest.warns(DeprecationWarning, match=r"Own\.importance\(layer\) is now called layer_importance"):
        own = type("Own", (BaseCAM,), {"weights": GradCAM.weights, "importance": importance})
    assert own(tiny(), ["relu1", "relu2"]).layer_importance is not None
    assert own.layer_importance is importance


def test_types_of_inherited_options_are_known_in_the_modules_of_subclasses() -> None:
    hints = get_type_hints(ISCAM.__init__)
    assert (hints["batch_size"], hints["channels"], hints["samples"]) == (int, int | float | None, int)

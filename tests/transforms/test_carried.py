"""`transform` and `class_names` that models carry: whatever holds good values is read, anything else is named."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_kit.errors import GradCamKitError, InputError, OptionError, UnknownNameError
from gradcam_kit.models import from_module, load_model
from gradcam_kit.targets.names import carried_names, class_index, named_targets, read_class_names
from gradcam_kit.transforms import PictureTransform, as_transform

PICTURE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)


def carrying(**attributes: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    "values",
    [
        {"size": 8, "mean": [0.5, 0.4, 0.3], "std": (0.1, 0.2, 0.3)},
        {"size": np.int64(8), "mean": np.array([0.5, 0.4, 0.3]), "std": np.array([0.1, 0.2, 0.3], np.float64)},
        {"size": [8, 8], "mean": torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64), "std": [0.1, 0.2, 0.3]},
        {"size": torch.Size([8, 8]), "mean": (np.float64(0.5), 0.4, 0.3), "std": [0.1, 0.2, 0.3], "resize": None},
    ],
)
def test_numbers_are_read_whatever_holds_them(values: dict[str, Any]) -> None:
    expected = PictureTransform((8, 8), None, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    found = as_transform(values)
    assert found == expected
    assert all(type(value) is float for value in found.mean)  # as run.json stores them


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mean": (0.5, math.nan, 0.5)}, "expected a finite number per channel"),
        ({"std": (math.inf,) * 3}, "expected a finite number per channel"),
        ({"std": (0.5, 0, 0.5)}, "std above 0"),
        ({"mean": "0.5,0.5,0.5"}, "expected a finite number per channel"),
        ({"mean": (0.5, None, 0.5)}, "expected a finite number per channel"),
        ({"mean": (0.5, 0.5)}, "three numbers each, or one each for gray"),
        ({"mean": 0.5}, "three numbers each, or one each for gray"),
        ({"size": 8.5}, "expected a number of pixels, or height and width"),
        ({"size": "224"}, "expected a number of pixels, or height and width"),
        ({"size": (8, 8, 3)}, "expected a number of pixels, or height and width"),
        ({"size": True}, "expected a number of pixels, or height and width"),
        ({"size": 0}, "sizes must be positive numbers of pixels"),
    ],
)
def test_other_values_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        from_module(carrying(transform=values))


@pytest.mark.parametrize("value", [(math.nan, 0.5, 0.5), (0.5, 0.5, -math.inf)])
def test_a_transform_made_by_hand_is_checked_too(value: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="mean and std must be finite"):
        PictureTransform(mean=value)


@pytest.mark.parametrize("value", ["resize", 224, [0.5, 0.5, 0.5]])
def test_what_is_no_transform_is_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"the transform is an? .*; expected a mapping, or a callable from "):
        from_module(carrying(transform=value))


def test_a_single_number_makes_gray_images() -> None:
    transform = as_transform({"size": (6, 8), "mean": 0.25, "std": [0.5]})
    gray = as_transform({"size": (6, 8), "mean": (0, 0, 0), "std": (1, 1, 1)})(PICTURE)
    expected = (gray * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)  # ITU-R 601-2, as PIL has it
    found = transform(PICTURE)
    assert found.shape == (1, 6, 8)
    torch.testing.assert_close(found[0], (expected - 0.25) / 0.5, atol=0.02, rtol=0)
    options = load_model("demo", mean=[0.5], std=[0.5]).transform
    assert options(PICTURE).shape[0] == 1


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ("cat", "dog"),
        np.array(["cat", "dog"]),
        np.array(["cat", "dog"], dtype=object),
        [np.str_("cat"), np.str_("dog")],
        {0: "cat", 1: "dog"},
        {np.int64(1): "dog", np.int64(0): "cat"},
        {"1": "dog", "0": "cat"},
        {"cat": 0, "dog": 1},
    ],
)
def test_class_names_are_read_whatever_holds_them(names: Any) -> None:
    loaded = from_module(carrying(class_names=names))
    assert loaded.class_names == ("cat", "dog")
    assert all(type(name) is str for name in loaded.class_names)
    assert from_module(carrying(), class_names=names).class_names == ("cat", "dog")


def test_numbers_are_names_too() -> None:
    assert read_class_names([3, np.int64(7)]) == ("3", "7")
    assert read_class_names(np.array([0, 1])) == ("0", "1")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("cat", "class_names is a str; expected one name for each class"),
        ({"cat", "dog"}, "class_names is a set"),
        (7, "class_names is an int"),
        (lambda: ["cat"], "class_names is a function"),
        (["cat", None], r"class_names\[1\] is a NoneType"),
        (["cat", math.nan], r"class_names\[1\] is NaN, an empty cell of a table"),
        (["cat", b"dog"], r"class_names\[1\] is a bytes"),
        (["cat", ["dog"]], r"class_names\[1\] is a list"),
        ({0: "cat", 2: "dog"}, "has the indices 0, 2"),
        ({0.5: "cat"}, "without indices of classes"),
    ],
)
def test_what_are_no_class_names_is_named(names: Any, says: str) -> None:
    with pytest.raises(GradCamKitError, match=says):
        from_module(carrying(class_names=names))


def test_names_of_a_configuration_are_known_unless_they_are_made_up() -> None:
    class Config:
        id2label: ClassVar = {0: "cat", 1: "dog"}

    assert carried_names(carrying(config=Config())) == ("cat", "dog")
    Config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert carried_names(carrying(config=Config())) is None


NAMES = ("tench, Tinca tinca", "crane", "K\u00e4se", "crane", " cup\u00a0")


@pytest.mark.parametrize(
    ("name", "index"),
    [("tench, Tinca tinca", 0), ("tench", 0), ("Tinca tinca", 0), ("Ka\u0308se", 2), ("cup", 4), ("\ufeffcup ", 4)],
)
def test_a_name_is_found_as_people_mean_it(name: str, index: int) -> None:
    assert class_index(name, NAMES) == index
    assert named_targets([name, 3], NAMES) == [index, 3]


def test_a_name_of_several_classes_or_of_none_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'crane' is the name of 2 classes, 1 and 3; give the index of one"):
        class_index("crane", NAMES)
    with pytest.raises(UnknownNameError, match="there is no class 'cupp' among the model's 5 classes"):
        class_index("cupp", NAMES)


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_models_of_1000_classes_have_the_names_of_imagenet(spec: str) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    loaded = load_model(spec)
    assert loaded.class_names is not None
    assert len(loaded.class_names) == 1000
    assert class_index("tench", loaded.class_names) == 0
    assert any("assumed to be those of ImageNet, because" in note for note in loaded.notes)
    own = load_model(spec, class_names=["a", "b"])
    assert own.class_names == ("a", "b")
    assert not any("ImageNet, because" in note for note in own.notes)

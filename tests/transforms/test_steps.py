"""The part of a picture that transforms of torchvision show, against where its pixels really end up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as old
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.transforms import CallableTransform, as_transform

SIZES = [(100, 200), (200, 100), (64, 64), (31, 57), (301, 77)]


def ramp(height: int, width: int) -> np.ndarray:
    """A picture that says where its pixels lie: the row in red, the column in green; blue marks them."""
    rows = np.linspace(0, 255, height)[:, None] * np.ones(width)
    columns = np.linspace(0, 255, width) * np.ones((height, 1))
    return np.stack([rows, columns, np.full((height, width), 255.0)], 2).round().astype(np.uint8)


def seen(transform: CallableTransform, height: int, width: int) -> list[float]:
    """Where the outermost whole pixels of the image lie in the picture, extrapolated to the edges of the image."""
    image = transform(ramp(height, width)).double().numpy()
    inside = image[2] > 0.999
    inside &= (image[0] > 0.02) & (image[0] < 0.98) & (image[1] > 0.02) & (image[1] < 0.98)
    rows, columns = np.nonzero(inside)
    y, x = image[0][inside] * (height - 1) + 0.5, image[1][inside] * (width - 1) + 0.5
    found = []
    for places, values, count in ((columns, x, image.shape[2]), (rows, y, image.shape[1])):
        slope, start = np.polyfit(places + 0.5, values, 1)
        found.append((start, start + slope * count))
    return [found[0][0], found[1][0], found[0][1], found[1][1]]


def composes(module: Any) -> dict[str, list[Any]]:
    return {
        "the usual one": [module.Resize(64), module.CenterCrop(48)],
        "both sides": [module.Resize((40, 72)), module.CenterCrop((32, 64))],
        "a list of one": [module.Resize([50]), module.CenterCrop([40])],
        "bounded": [module.Resize(48, max_size=80)],
        "padded": [module.Pad(7), module.Resize(56)],
        "padded on two sides": [module.Pad((9, 4)), module.Resize((60, 60))],
        "padded on four sides": [module.Resize(60), module.Pad((1, 2, 13, 24))],
        "a crop larger than the image": [module.Resize(30), module.CenterCrop(90)],
        "nested": [module.Compose([module.Resize(70), module.Compose([module.CenterCrop(60)])]), module.Resize(30)],
        "a crop alone": [module.CenterCrop((30, 30))],
    }


CASES = [(module, name) for module in (old, v2) for name in composes(module)]


@pytest.mark.parametrize(("module", "name"), CASES, ids=[f"{m.__name__[-2:]} {name}" for m, name in CASES])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_box_is_where_the_pixels_come_from(module: Any, name: str, size: tuple[int, int]) -> None:
    to_tensor = [old.ToTensor()] if module is old else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = as_transform(module.Compose([*composes(module)[name], *to_tensor]))
    assert isinstance(transform, CallableTransform)
    assert transform.knows_box
    np.testing.assert_allclose(transform.box(*size), seen(transform, *size), atol=0.03 * max(size))


def test_a_box_by_hand() -> None:
    compose = old.Compose([old.Resize(64), old.CenterCrop(64), old.ToTensor(), old.Normalize((0.5,) * 3, (0.5,) * 3)])
    assert as_transform(compose).box(100, 200) == (50.0, 0.0, 150.0, 100.0)
    assert as_transform(old.Compose([old.Pad((10, 0)), old.ToTensor()])).box(100, 200) == (-10.0, 0.0, 210.0, 100.0)
    odd = as_transform(old.Compose([old.CenterCrop(6), old.ToTensor()]))
    assert odd.box(9, 7) == (0.0, 2.0, 6.0, 8.0)  # 1.5 becomes 2 and 0.5 becomes 0


def test_a_preset_of_weights_tells_its_crop() -> None:
    transform = as_transform(ImageClassification(crop_size=32, resize_size=40))
    assert transform.box(80, 160) == pytest.approx((48, 8, 112, 72))
    assert transform(ramp(80, 160)).shape == (3, 32, 32)


def test_a_sequential_of_steps_gets_the_tensor_it_is_made_for() -> None:
    steps = nn.Sequential(old.Resize(64), old.CenterCrop(64), old.ConvertImageDtype(torch.float32), nn.Identity())
    transform = as_transform(steps)
    assert transform(ramp(100, 200)).shape == (3, 64, 64)
    assert transform.box(100, 200) == (50.0, 0.0, 150.0, 100.0)


@pytest.mark.parametrize("module", [old, v2])
def test_what_a_function_does_to_the_place_is_not_guessed(module: Any) -> None:
    transform = as_transform(module.Compose([module.Resize(8), module.Lambda(lambda x: x), old.ToTensor()]))
    assert isinstance(transform, CallableTransform)
    assert not transform.knows_box
    assert transform.box(10, 20) == (0.0, 0.0, 20.0, 10.0)


class Resize:
    """Somebody's own, which is only called like one of torchvision."""

    size = 4

    def __call__(self, picture: Any) -> Any:
        return picture


def test_a_name_alone_does_not_make_a_step_of_torchvision() -> None:
    transform = as_transform(old.Compose([Resize(), old.ToTensor()]))
    assert isinstance(transform, CallableTransform)
    assert not transform.knows_box


@pytest.mark.parametrize(
    "step",
    [
        old.RandomResizedCrop(8),
        v2.RandomResizedCrop(8),
        old.RandomHorizontalFlip(),
        old.Compose([old.RandomRotation(5)]),
        v2.RandomChoice([v2.CenterCrop(3)]),
        old.TrivialAugmentWide(),
        v2.ScaleJitter((9, 9)),
    ],
    ids=lambda step: type(step).__name__,
)
def test_crops_and_turns_at_random_are_refused(step: Any) -> None:
    with pytest.raises(OptionError, match="so it moves pixels at random; pass the evaluation"):
        as_transform(old.Compose([old.Resize(9), step, old.ToTensor()]))


def test_colors_at_random_are_told() -> None:
    transform = as_transform(old.Compose([old.ColorJitter(0.1), old.Resize(8), old.ToTensor()]))
    assert isinstance(transform, CallableTransform)
    assert transform.random_steps == ["ColorJitter"]
    assert transform.box(16, 16) == (0, 0, 16, 16)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (old.Compose([old.Resize(8)]), "returns Image; .*; end the transform with ToTensor"),
        (old.Compose([old.FiveCrop(8)]), "returns tuple; .*FiveCrop, are several images: use CenterCrop"),
        (old.Compose([old.ToTensor(), lambda x: x[None]]), r"\(1, 3, 9, 9\); .*; leave out the batch axis"),
        (lambda picture: picture, r"returns ndarray; .*permute\(2, 0, 1\)"),
        (lambda picture: [picture], "returns list; expected a floating-point tensor"),
        (lambda picture: None, "returns NoneType; .*without a return statement"),
        (lambda picture: torch.zeros(3, 4, 4, dtype=torch.int64), r"returns torch.int64 \(3, 4, 4\)"),
    ],
)
def test_what_a_transform_may_not_return(function: Any, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        as_transform(function)(ramp(9, 9))


@pytest.mark.parametrize("box", [(0, 0, 5), None, (0, 0, float("nan"), 5), (5, 0, 5, 9), "abcd"])
def test_a_box_that_is_none_is_refused(box: Any) -> None:
    class Own:
        def __call__(self, picture: np.ndarray) -> torch.Tensor:
            return torch.zeros(3, 4, 4)

        def box(self, height: int, width: int) -> Any:
            return box

    with pytest.raises(ShapeError, match=r"box\(9, 9\) of the transform is .*; expected \(x0, y0, x1, y1\)"):
        as_transform(Own()).box(9, 9)


def test_bytes_become_floats_of_the_same_values() -> None:
    transform = as_transform(lambda picture: torch.from_numpy(picture).permute(2, 0, 1))
    prepared = transform.prepare(ramp(4, 4))
    assert isinstance(prepared, torch.Tensor)
    assert prepared.dtype == torch.uint8
    assert transform(ramp(4, 4)).max() == 255.0


def test_a_module_that_is_called_like_a_preset_elsewhere_is_unknown() -> None:
    fake = SimpleNamespace(resize_size=[9], crop_size=[9])
    assert not CallableTransform(lambda picture: fake).knows_box

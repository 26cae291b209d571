"""From a picture to the model's input and back: the numbers of the libraries, and boxes by hand."""

from __future__ import annotations

from inspect import unwrap

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from skimage import data
from timm.data import create_transform
from torch import nn
from torchvision import models, transforms

from gradcam_kit.errors import (
    InputError,
    OptionError,
    PictureError,
    ShapeError,
    UnknownNameError,
)
from gradcam_kit.transforms import (
    IMAGENET,
    CallableTransform,
    PictureTransform,
    as_transform,
    from_hugging_face,
    from_timm,
    from_torchvision,
)

PICTURES = {
    "landscape": data.coffee(),
    "portrait": np.ascontiguousarray(data.rocket().transpose(1, 0, 2)),
    "square": data.astronaut(),
    "small": data.coffee()[:37, :301].copy(),
    "thin": data.chelsea()[:9].copy(),
}


def levels(image: torch.Tensor, transform: PictureTransform) -> torch.Tensor:
    """Undo the normalization: levels from 0 to 255."""
    return (image * torch.tensor(transform.std).view(3, 1, 1) + torch.tensor(transform.mean).view(3, 1, 1)) * 255


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize(
    "weights",
    [
        models.ResNet50_Weights.IMAGENET1K_V1,
        models.ResNet50_Weights.IMAGENET1K_V2,
        models.Inception_V3_Weights.IMAGENET1K_V1,
        models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1,
        models.Swin_V2_T_Weights.IMAGENET1K_V1,
    ],
    ids=str,
)
def test_a_torchvision_preset_gives_the_same_numbers(weights: models.WeightsEnum, picture: np.ndarray) -> None:
    preset = weights.transforms()
    transform = from_torchvision(preset)
    difference = levels(transform(picture), transform) - levels(preset(Image.fromarray(picture)), transform)
    assert difference.abs().max() < 1e-3


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize(
    "config",
    [
        {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"},
        {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"},
        {"input_size": (3, 96, 160), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
        {"input_size": (3, 64, 64), "crop_pct": 1.6, "crop_mode": "center", "interpolation": "bilinear"},
    ],
    ids=str,
)
def test_a_data_config_of_timm_gives_the_same_numbers(config: dict[str, object], picture: np.ndarray) -> None:
    config = {**config, "mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1)}
    transform = from_timm(config)
    assert transform is not None
    expected = create_transform(**config, is_training=False)(Image.fromarray(picture))
    assert (levels(transform(picture), transform) - levels(expected, transform)).abs().max() < 1e-3


def test_letterboxed_pictures_of_timm_are_not_claimed_to_be_understood() -> None:
    config = timm.data.resolve_data_config({"crop_mode": "border", "input_size": (3, 64, 64)})
    assert from_timm(config) is None
    assert from_timm({**config, "crop_mode": "center", "input_size": (3, 64, 32)}) is None


@pytest.mark.parametrize(
    ("processor", "resize", "size"),
    [
        (transformers.ViTImageProcessor(), (224, 224), (224, 224)),
        (transformers.ConvNextImageProcessor(size={"shortest_edge": 224}), 256, (224, 224)),
        (transformers.ConvNextImageProcessor(size={"shortest_edge": 384}), (384, 384), (384, 384)),
        (transformers.CLIPImageProcessor(), 224, (224, 224)),
    ],
    ids=["exact", "crop_pct", "large", "crop"],
)
def test_an_image_processor_gives_the_same_numbers(processor: object, resize: object, size: tuple[int, int]) -> None:
    transform = from_hugging_face(processor.to_dict())  # type: ignore[attr-defined]
    assert transform is not None
    assert (transform.resize, transform.size) == (resize, size)
    picture = data.astronaut()
    expected = processor(images=picture, return_tensors="pt")["pixel_values"][0]  # type: ignore[operator]
    assert (levels(transform(picture), transform) - levels(expected, transform)).abs().max() <= 2.01


def test_the_box_by_hand() -> None:
    # 400 x 600 becomes 256 x 384; the crop takes columns 80 to 304 and rows 16 to 240; one pixel is 1.5625 of before.
    assert IMAGENET.box(400, 600) == (125.0, 25.0, 475.0, 375.0)
    assert PictureTransform(size=(128, 128)).box(50, 90) == (0.0, 0.0, 90.0, 50.0)
    # 100 x 200 becomes 50 x 100; a crop of 80 x 80 has 15 black rows above and below, which are 30 of the picture.
    padded = PictureTransform(size=(80, 80), resize=50)
    assert padded.box(100, 200) == (20.0, -30.0, 180.0, 130.0)
    black = levels(padded(np.full((100, 200, 3), 200, np.uint8)), padded)
    assert black[:, :15].abs().max() < 1e-3
    assert black[:, -15:].abs().max() < 1e-3
    assert (black[:, 15:-15] - 200).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(400, 600), (600, 400), (301, 299), (80, 500)], ids=str)
@pytest.mark.parametrize(
    "transform", [IMAGENET, PictureTransform(size=(96, 64)), PictureTransform((60, 90), resize=(100, 110))], ids=str
)
def test_the_box_says_where_each_input_pixel_comes_from(transform: PictureTransform, size: tuple[int, int]) -> None:
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    ramps = np.rint(np.stack([x * 255 / width, y * 255 / height, x * 0], axis=2)).astype(np.uint8)
    seen = levels(transform(ramps), transform)[:, 2:-2, 2:-2]  # the borders of a resized picture have fewer neighbors
    x0, y0, x1, y1 = transform.box(height, width)
    columns = x0 + (torch.arange(transform.size[1])[2:-2] + 0.5) * (x1 - x0) / transform.size[1]
    rows = y0 + (torch.arange(transform.size[0])[2:-2] + 0.5) * (y1 - y0) / transform.size[0]
    assert (seen[0] - columns * 255 / width).abs().max() < 1.1
    assert (seen[1] - rows[:, None] * 255 / height).abs().max() < 1.1


def test_another_size_keeps_the_proportions() -> None:
    assert IMAGENET.with_size(448) == PictureTransform(size=(448, 448), resize=512)
    assert PictureTransform(size=(100, 100), resize=(120, 150)).with_size(50).resize == (60, 75)
    assert PictureTransform(size=(100, 100)).with_size(50) == PictureTransform(size=(50, 50))


def test_a_picture_that_is_too_thin_is_an_error_and_does_not_fill_the_memory() -> None:
    with pytest.raises(PictureError, match="60000 x 1 pixels is too thin"):
        IMAGENET(np.zeros((1, 60_000, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"interpolation": "cubic"}, UnknownNameError, "no interpolation 'cubic'; did you mean 'bicubic'"),
        ({"size": (0, 4)}, OptionError, "size=(0, 4)"),
        ({"resize": -1}, OptionError, "resize=-1"),
        ({"std": (1.0, 0.0, 1.0)}, OptionError, "std above 0"),
        ({"mean": (0.5,)}, OptionError, "three numbers"),
    ],
)
def test_wrong_fields_are_refused(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        PictureTransform(**options)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_mapping_is_read_as_fields() -> None:
    read = as_transform({"size": 64, "mean": [0.5, 0.5, 0.5], "std": (0.2, 0.2, 0.2), "resize": 70})
    assert read == PictureTransform(size=(64, 64), resize=70, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert as_transform(read) is read
    with pytest.raises(OptionError, match="no field 'scale'; its fields are size, resize, mean"):
        as_transform({"size": 64, "scale": 2})


def test_callables_get_what_they_expect() -> None:
    picture = data.coffee()
    plain = CallableTransform(lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255)
    assert torch.equal(plain(picture), torch.from_numpy(picture).permute(2, 0, 1) / 255)
    assert plain.box(400, 600) == (0.0, 0.0, 600.0, 400.0)
    composed = CallableTransform(transforms.Compose([transforms.Resize(32), transforms.ToTensor()]))
    assert composed(picture).shape == (3, 32, 48)
    assert "Resize" in composed.describe()["callable"]
    assert " at 0x" not in CallableTransform(nn.Identity().forward).describe()["callable"]
    with pytest.raises(ShapeError, match=r"returns torch.uint8 \(400, 600, 3\); expected a floating-point tensor"):
        CallableTransform(torch.from_numpy)(picture)


def test_a_path_is_no_picture() -> None:
    with pytest.raises(InputError, match=r"is a str; expected a NumPy array .* read_picture\('cat.jpg'\)"):
        unwrap(PictureTransform.prepare)(PictureTransform(), "cat.jpg")

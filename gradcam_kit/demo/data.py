"""Pictures of eight shapes with ground-truth masks, generated from a seed; only the shape determines the class.

Possible shortcuts (color, texture, position, rotation, light, background, size) are drawn independently of the
class, and strokes and pebbles without a class are added, so that a model has to look at the outline of the object.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from gradcam_kit.demo.shapes import SHAPES, Field, extent, pebble, rotate, stroke
from gradcam_kit.errors import ClassIndexError, UnknownNameError, did_you_mean

CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
SIDE = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
# Lower and upper limit of the share of the picture that the object covers.
SIZES = {"small": (0.018, 0.03), "medium": (0.05, 0.08), "large": (0.12, 0.2)}
# Training uses smaller seeds; evaluation and the sample pictures use seeds from here on.
HELD_OUT = 1_000_000

Canvas = Float[np.ndarray, "h w 3"]
Color = tuple[float, float, float]

_BACKGROUNDS = ("clouds", "grain", "marble", "gradient", "patches", "strata")
_SURFACES = ("plain", "clouds", "grain", "marble", "stripes", "dots", "checks")
_Y, _X = np.mgrid[:SIDE, :SIDE].astype(float)


@dataclass(frozen=True)
class Sample:
    """A picture: ``mask`` is true on the object, ``label`` indexes ``CLASS_NAMES``, ``size`` is a key of ``SIZES``."""

    picture: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]
    label: int
    size: str


class Batch(NamedTuple):
    """Samples for the model: normalized images, class indices, masks."""

    images: Float[Tensor, "n 3 h w"]
    labels: Int[Tensor, "n"]
    masks: Bool[Tensor, "n h w"]


def draw(seed: int, *, label: int | None = None, size: str | None = None) -> Sample:
    """Draw the sample of a seed; ``label`` and ``size`` override the seed's choices.

    Raises:
        ClassIndexError: ``label`` is not an index of ``CLASS_NAMES``.
        UnknownNameError: ``size`` is not a key of ``SIZES``.
    """
    if label is not None and label not in range(len(CLASS_NAMES)):
        raise ClassIndexError(f"there is no class {label}: the demo has {len(CLASS_NAMES)} classes, counted from 0")
    if size is not None and size not in SIZES:
        raise UnknownNameError(f"there is no size {size!r}; sizes are {', '.join(SIZES)}{did_you_mean(size, SIZES)}")
    rng = np.random.default_rng(seed)
    chosen_label, chosen_size = int(rng.integers(len(CLASS_NAMES))), str(rng.choice(list(SIZES)))
    label, size = chosen_label if label is None else label, size or chosen_size
    light = rng.uniform(0, 2 * np.pi)
    canvas = _background(rng)
    for _ in range(rng.integers(2, 6)):
        _paint(canvas, _distractor(rng), _surface(rng, canvas), light)
    distance = _object(rng, CLASS_NAMES[label], rng.uniform(*SIZES[size]))
    _paint(canvas, distance, _surface(rng, canvas), light)
    canvas += rng.normal(0, rng.uniform(0.005, 0.02), (SIDE, SIDE, 1))
    return Sample(np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8), distance < 0, label, size)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples for the model; ``images`` are ``(picture / 255 - MEAN) / STD``."""
    pictures = torch.from_numpy(np.stack([sample.picture for sample in samples])).movedim(-1, 1)
    images = (pictures / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = torch.tensor([sample.label for sample in samples])
    return Batch(images, labels, torch.from_numpy(np.stack([sample.mask for sample in samples])))


def draw_batches(seeds: Sequence[int], batch_size: int = 64) -> Iterator[Batch]:
    """Draw the samples of the seeds, a batch at a time."""
    for start in range(0, len(seeds), batch_size):
        yield collate([draw(seed) for seed in seeds[start : start + batch_size]])


def _object(rng: np.random.Generator, name: str, share: float) -> Field:
    """Return the distance to a randomly placed, rotated shape that covers this share of the picture."""
    area, radius = extent(name)
    scale = SIDE * np.sqrt(share / area)
    center_x, center_y = rng.uniform(scale * radius + 2, SIDE - 3 - scale * radius, 2)
    x, y = rotate((_X - center_x) / scale, (_Y - center_y) / scale, rng.uniform(0, 2 * np.pi))
    distance: Field = scale * SHAPES[name](x, y)
    return distance


def _distractor(rng: np.random.Generator) -> Field:
    """Return the distance to a pebble, or to a straight or bent stroke."""
    x, y = _X - rng.uniform(0, SIDE), _Y - rng.uniform(0, SIDE)
    if rng.random() < 0.35:
        x, y = rotate(x, y, rng.uniform(0, 2 * np.pi))
        return pebble(rng.uniform(2.5, 5), rng.uniform(1.8, 2.5), rng.uniform(0, 2 * np.pi), x, y)
    steps = rng.normal(0, 14, (rng.integers(1, 3), 2))
    return stroke(np.cumsum([(0, 0), *steps], axis=0), x, y) - rng.uniform(0.8, 2.2)


def _paint(canvas: Canvas, distance: Field, surface: Canvas, light: float) -> None:
    """Lay a beveled piece of ``surface`` on the canvas, with its shadow, lit from the angle ``light``."""
    rows, columns = (np.flatnonzero((distance < 12).any(axis)) for axis in (1, 0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    distance = distance[window]
    height, width = distance.shape
    toward_x, toward_y = np.cos(light), np.sin(light)
    left, top = round(4 + 4 * toward_x), round(4 + 4 * toward_y)
    shadow = np.pad(distance, 4, mode="edge")[top : top + height, left : left + width]
    slope_y, slope_x = np.gradient(distance)
    bevel = (_smooth(1 + distance / 4) * (slope_x * toward_x + slope_y * toward_y))[..., None]
    lit = np.clip(surface[window] * (1 + 0.35 * bevel) + 0.1 * np.maximum(bevel, 0), 0, 1)
    canvas[window] *= 1 - 0.4 * _smooth(0.5 - shadow / 8)[..., None]
    canvas[window] += (lit - canvas[window]) * np.clip(0.5 - distance, 0, 1)[..., None]


def _background(rng: np.random.Generator) -> Canvas:
    hue, low, high = rng.random(), rng.uniform(0.15, 0.5), rng.uniform(0.5, 0.95)
    colors = [_hsv(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.6), value) for value in (low, (low + high) / 2, high)]
    return _dye(_texture(rng, _BACKGROUNDS), colors)


def _surface(rng: np.random.Generator, canvas: Canvas) -> Canvas:
    """Return a textured surface whose color stands out from the canvas."""
    mean = canvas[::4, ::4].mean((0, 1))
    while True:
        hue, saturation, value = rng.random(), rng.uniform(0.25, 0.95), rng.uniform(0.3, 1)
        if np.linalg.norm(_hsv(hue, saturation, value) - mean) > 0.45:
            break
    darker = _hsv(hue + rng.normal(0, 0.05), saturation * rng.uniform(0.5, 1), value * rng.uniform(0.6, 0.85))
    return _dye(_texture(rng, _SURFACES), [_hsv(hue, saturation, value), darker])


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _dye(field: Field, colors: Sequence[Color]) -> Canvas:
    """Color a field in [0, 1] by interpolation between the colors."""
    steps = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(field, steps, channel) for channel in zip(*colors, strict=True)], axis=-1)


def _texture(rng: np.random.Generator, kinds: Sequence[str]) -> Field:
    """Return a random texture of one of the kinds, as a field in [0, 1]."""
    frequency = 2 * np.pi / rng.uniform(7, 16)
    u, v = rotate(frequency * _X, frequency * _Y, rng.uniform(0, 2 * np.pi))
    match rng.choice(kinds):
        case "clouds":
            return _noise(rng, int(rng.integers(2, 5)), 5)
        case "grain":
            return _stretch(_noise(rng, 2, 2) + 0.8 * _noise(rng, 32, 3))
        case "marble":
            return _stretch(-np.abs(2 * _noise(rng, int(rng.integers(3, 6)), 4) - 1))
        case "gradient":
            return _stretch(u + 0.15 * np.ptp(u) * _noise(rng, 4, 4))
        case "patches":
            return _smooth(3 * _noise(rng, int(rng.integers(4, 8)), 1) - 1)
        case "strata":
            return _stretch(np.sin(0.6 * u + 9 * _noise(rng, 2, 3)))
        case "stripes":
            return _smooth(0.5 + 1.5 * np.sin(u))
        case "dots":
            return _smooth(2 * (np.cos(u) + np.cos(v)) - 1)
        case "checks":
            return _smooth(0.5 + 3 * np.sin(u) * np.sin(v))
        case _:
            return np.zeros((SIDE, SIDE))


def _noise(rng: np.random.Generator, cells: int, octaves: int) -> Field:
    """Return fractal value noise in [0, 1]: ``cells`` to a side, each octave twice as fine and half as strong."""
    field = np.zeros((SIDE, SIDE))
    for octave in range(octaves):
        at = np.arange(SIDE) * cells * 2**octave / SIDE
        low = at.astype(int)
        knots, part = rng.random((cells * 2**octave + 1,) * 2), _smooth(at - low)
        rows = knots[low] + (knots[low + 1] - knots[low]) * part[:, None]
        field += (rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part) / 2**octave
    return _stretch(field)


def _stretch(field: Field) -> Field:
    stretched: Field = (field - field.min()) / np.ptp(field)
    return stretched


def _smooth(field: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Return a smooth step function of the field, which rises from 0 at 0 to 1 at 1."""
    clipped = np.clip(field, 0, 1)
    step: Float[np.ndarray, "*s"] = clipped * clipped * (3 - 2 * clipped)
    return step


# The sample pictures: one of each class, from consecutive held-out seeds, chosen before any model was trained.

PICTURES = Path(__file__).parent / "pictures"
_SAMPLE_SIZES = ("small", "medium", "large", "small", "medium", "small", "large", "medium")


@dataclass(frozen=True)
class SamplePicture:
    """A bundled picture: ``name`` is the file name without its suffix, ``mask`` is true on the object."""

    name: str
    path: Path
    picture: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]
    label: int


def draw_sample_pictures() -> dict[str, Sample]:
    """Draw the bundled pictures again, and return them by name."""
    return {
        f"{label + 1:02}-{CLASS_NAMES[label]}-{size}": draw(HELD_OUT + label, label=label, size=size)
        for label, size in enumerate(_SAMPLE_SIZES)
    }


def write_sample_pictures(folder: Path = PICTURES) -> None:
    """Write the bundled pictures to a folder, and their masks to the folder "masks" next to it."""
    from PIL import Image

    masks = folder.parent / "masks"
    for place in (folder, masks):
        place.mkdir(parents=True, exist_ok=True)
    for name, sample in draw_sample_pictures().items():
        Image.fromarray(sample.picture).save(folder / f"{name}.png", optimize=True)
        Image.fromarray(sample.mask).save(masks / f"{name}.png", optimize=True)


def sample_pictures() -> list[SamplePicture]:
    """Load the bundled pictures, sorted by name."""
    from PIL import Image

    loaded = []
    for path in sorted(PICTURES.glob("*.png")):
        with Image.open(path) as picture, Image.open(PICTURES.parent / "masks" / path.name) as mask:
            label = CLASS_NAMES.index(path.stem.split("-")[1])
            loaded.append(SamplePicture(path.stem, path, np.array(picture), np.array(mask), label))
    return loaded

"""Find the level of a detector's feature pyramid that carries each object, and levels that never carry any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gradcam_kit.capture import check_observable
from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.checks.batches import moved
from gradcam_kit.diagnostics.checks.preserving import device_of
from gradcam_kit.diagnostics.compare.reading import evaluated
from gradcam_kit.diagnostics.compare.tables import frame, text_table
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.pyramid_anchors import anchored, is_anchored
from gradcam_kit.diagnostics.pyramid_maps import Detected, LevelMap, by_gradient, find_pyramid
from gradcam_kit.errors import InputError, kind_of
from gradcam_kit.options import positive_int

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

BINS = ("small", "medium", "large")
"""Box sizes as COCO defines them: areas up to 32², up to 96², and above, in pixels of the original image."""
_EDGES = (32.0**2, 96.0**2)


@dataclass(frozen=True)
class PyramidLevel:
    """One level of a pyramid.

    Attributes:
        name: name of the level in the detector, such as "0" or "pool".
        shape: `(k, h, w)` of its features.
        activation: mean magnitude of its activations over all images, units and positions.
        anchors: number of anchors per image; None if they cannot be read.
        sizes: smallest and largest size of its anchors (the square root of the area), in pixels of the resized image;
            None if they cannot be read.
        objects: number of objects that the level carries, by box size.
        strength: share of the total score that this level carries, by box size; NaN without objects of that size.
        never: whether the level cannot carry any object.
    """

    name: str
    shape: tuple[int, ...]
    activation: float
    anchors: int | None
    sizes: tuple[float, float] | None
    objects: dict[str, int]
    strength: dict[str, float]
    never: bool


@dataclass(frozen=True)
class CarriedObject:
    """One object and the level that carries it.

    Attributes:
        image: index of the image.
        box: (x0, y0, x1, y1) in pixels of the original image.
        size: "small", "medium" or "large".
        score: the score that the detector gives the object.
        level: name of the level.
    """

    image: int
    box: tuple[float, float, float, float]
    size: str
    score: float
    level: str


@dataclass(frozen=True, repr=False)
class PyramidLevels:
    """The levels of a pyramid with their objects; displayed in notebooks.

    Attributes:
        pyramid: dotted name of the module that returns the levels.
        levels: the levels in the order of the detector, usually the finest first.
        objects: the objects, with the level of each.
        findings: one for each level that never carries an object.
        notes: remarks on the numbers.
    """

    pyramid: str
    levels: tuple[PyramidLevel, ...]
    objects: tuple[CarriedObject, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one row for each level.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = []
        for level in self.levels:
            row = asdict(level)
            objects, strength = row.pop("objects"), row.pop("strength")
            row |= {f"{name} objects": objects[name] for name in BINS}
            rows.append(row | {f"{name} strength": strength[name] for name in BINS})
        return frame(rows)

    def plot(self) -> Figure:
        """Plot the share of the score that each level carries by box size, and the activations of the levels.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.comparisons import plot_levels

        return plot_levels(self.levels, BINS, f"Share of the score by level of {self.pyramid}")

    def __str__(self) -> str:
        rows = [
            [
                level.name,
                "x".join(map(str, level.shape)),
                level.activation,
                level.anchors,
                *(level.objects[name] for name in BINS),
                *(level.strength[name] for name in BINS),
            ]
            for level in self.levels
        ]
        columns = ("level", "shape", "activation", "anchors", *BINS, *(f"{name} share" for name in BINS))
        head = f"{self.pyramid}: {len(self.levels)} levels, number of objects: {len(self.objects):,}."
        notes = (f"NOTE {note}" for note in self.notes)
        return "\n".join([*map(str, self.findings), *notes, head, *text_table(columns, rows)])

    def __repr__(self) -> str:
        return f"PyramidLevels({self.pyramid}, {len(self.levels)} levels, {len(self.objects)} objects)"

    def _repr_html_(self) -> str:
        from gradcam_kit.diagnostics.show.comparisons import as_html

        return as_html(self)


def pyramid_levels(detector: nn.Module, images: Any, *, objects: int = 100) -> PyramidLevels:
    """Find the level of a detector's pyramid that carries each object, by box size, and levels that never carry any.

    The objects are the detections of the model. In torchvision's Faster R-CNN (and its variants), RetinaNet, FCOS and
    SSD, an object is carried by the level whose anchor produced its box; in two-stage detectors, this is the anchor of
    the first stage. If such a detector finds nothing, as before training, its strongest boxes serve as objects. A level
    never carries an object if no box with sides from 4 to 1,333 pixels would be assigned to it.

    In other detectors, an object is carried by the level with the largest sum of |gradient of its score x activation|.
    A level never carries an object if this sum is 0 for the whole output.

    Args:
        detector: any detector; it runs in eval mode and is not changed.
        images: a sequence of tensors `(c, h, w)` in [0, 1], as torchvision's detectors accept them, or one tensor
            `(n, c, h, w)`; passed to the detector unchanged.
        objects: maximum number of objects per image, the strongest first; at most 20 if the detector finds nothing.

    Raises:
        InputError: a detector without a pyramid, or images that are missing or have the wrong type or shape.
        OptionError: `objects` is less than 1.

    Example:
        >>> import torch
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        >>> len(pyramid_levels(detector, torch.rand(1, 3, 320, 320)).levels)
        6
    """
    positive_int("objects", objects)
    inner = check_observable(detector)
    given = _images(images, inner)
    with evaluated(inner):
        if is_anchored(inner):
            maps, found, notes = anchored(inner, given, objects)
        else:
            maps, found, notes = by_gradient(inner, find_pyramid(inner, given), given, objects)
    carried = [_object(one, maps) for one in found]
    levels = tuple(_level(own, carried) for own in maps.levels)
    findings = tuple(_finding(maps.name, place, level) for place, level in enumerate(levels) if level.never)
    return PyramidLevels(maps.name, levels, tuple(carried), findings, tuple(notes))


def _images(images: Any, detector: nn.Module) -> Any:
    if isinstance(images, Tensor):
        if images.ndim != 4 or not len(images):
            raise InputError(f"images have shape {tuple(images.shape)}; expected (n, c, h, w), or a list of (c, h, w)")
    elif isinstance(images, Mapping | str) or not isinstance(images, Sequence) or not images:
        found = "empty" if isinstance(images, Sequence) and not images else kind_of(images)
        raise InputError(f"images is {found}; expected a list of tensors (c, h, w), or a tensor (n, c, h, w)")
    else:
        wrong = next((one for one in images if not isinstance(one, Tensor) or one.ndim != 3), None)
        if wrong is not None:
            found = str(tuple(wrong.shape)) if isinstance(wrong, Tensor) else kind_of(wrong)
            raise InputError(f"an image is {found}; expected a list of tensors (c, h, w), or a tensor (n, c, h, w)")
    return moved(images, device_of(detector))


def _object(one: Detected, maps: Any) -> CarriedObject:
    x0, y0, x1, y1 = one.box
    area = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
    size = BINS[sum(area > edge for edge in _EDGES)]
    return CarriedObject(one.image, (x0, y0, x1, y1), size, one.score, maps.levels[one.level].name)


def _level(own: LevelMap, carried: Sequence[CarriedObject]) -> PyramidLevel:
    counts, shares = {}, {}
    for name in BINS:
        here = [one for one in carried if one.size == name]
        mine = [one for one in here if one.level == own.name]
        total = sum(one.score for one in here)
        counts[name] = len(mine)
        shares[name] = sum(one.score for one in mine) / total if total > 0 else math.nan
    return PyramidLevel(own.name, own.shape, own.activation, own.anchors, own.sizes, counts, shares, own.never)


def _finding(pyramid: str, place: int, level: PyramidLevel) -> Finding:
    if level.anchors == 0:
        why = "it has no anchors"
    elif level.sizes is not None:
        why = f"its anchors of {level.sizes[0]:.4g} to {level.sizes[1]:.4g} pixels match no box from 4 to 1,333 pixels"
    else:
        why = "no output depends on it"
    said = f"Level {level.name!r} of the pyramid never carries an object: {why}"
    return Finding(
        "warn",
        "dead",
        f"{pyramid}:{place}",
        said,
        1.0,
        0.0,
        None,
        advice.EMPTY_LEVEL,
        "definition: no positive assignment",
    )

"""The pictures on the page: samples to choose from, and the chosen picture with its boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from gradcam_kit.app.uploads import PictureSource
from gradcam_kit.app.views import SHOWN_SIDE, AppModel, View
from gradcam_kit.demo import sample_pictures
from gradcam_kit.pixels.outlines import outline, read_outlines
from gradcam_kit.pixels.pictures import RGB

_PHOTOGRAPHS = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
"""Function of `skimage.data` -> its file, which scikit-image includes."""


def samples(model: AppModel) -> list[tuple[Path, PictureSource]]:
    """Return sample pictures: photographs of scikit-image, or shapes for the bundled model."""
    if model.request.model == "demo":
        imported = "from gradcam_kit.demo import sample_pictures"
        return [
            (one.path, PictureSource(one.name.split("-", 1)[1], f"sample_pictures()[{place}].picture", imported))
            for place, one in enumerate(sample_pictures()[:4])
        ]
    folder = Path(skimage.data.__file__).parent
    return [
        (folder / file, PictureSource(name, f"data.{name}()", "from skimage import data"))
        for name, file in _PHOTOGRAPHS.items()
        if (folder / file).is_file()
    ]


def enlargement(view: View) -> float:
    """Return the factor by which the page enlarges `view.shown`.

    The position of a click is correct only in pictures that the browser does not enlarge itself.
    """
    return max(1.0, SHOWN_SIDE / int(max(view.shown.shape[:2])))


def with_boxes(view: View) -> RGB:
    """Return the picture with all boxes that can be chosen; a small picture is enlarged."""
    factor, canvas = enlargement(view), view.shown.copy()
    if factor > 1:
        height, width = (round(side * factor) for side in canvas.shape[:2])
        canvas = np.array(Image.fromarray(canvas).resize((width, height), Image.Resampling.BICUBIC))
    if boxes := [[side * factor for side in one.box] for one in view.targets if one.box is not None]:
        outline(canvas, read_outlines(boxes, canvas.shape[:2]))
    return canvas

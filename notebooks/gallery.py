"""Make the pictures of docs/gallery.md, of the methods and of README: `python -m notebooks.gallery`, some minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data

from gradcam_kit import METHODS, BaseCAM, contact_sheet, explain_all, overlay, overlays
from gradcam_kit.models import load_model
from gradcam_kit.pixels.pictures import RGB, write_picture
from gradcam_kit.targets.names import class_index
from notebooks.gallery_networks import detection, every_method, signals, transformer, volume

DOCS = Path(__file__).parent.parent / "docs"
SIDE = 224
METHODS_SHOWN = (
    "grad-cam", "grad-cam++", "hires-cam", "xgrad-cam", "layer-cam", "einsum-cam", "finer-cam", "shapley-cam",
    "ablation-cam", "score-cam", "recipro-cam", "guided-grad-cam", "full-grad", "eigen-cam",
)  # fmt: skip
ELSEWHERE = (
    "balanced-cam", "generic-attention", "legrad", "grad-eclip", "attention-rollout", "vit-recipro-cam",
    "odam", "d-rise",
)  # fmt: skip
"""Methods for transformers and detectors, which a network for photographs cannot show."""
SMALL = 128
FEWER: Mapping[str, dict[str, Any]] = {"score-cam": {"channels": 0.05}}


def main() -> None:
    """Write the gallery and the title picture."""
    loaded = load_model("mobilenet-v2")
    (DOCS / "gallery" / "methods").mkdir(parents=True, exist_ok=True)
    assert loaded.class_names is not None
    shown = {
        "cat-and-espresso": (_beside(data.chelsea(), data.coffee()), ("Egyptian cat", "espresso")),
        "astronaut": (_square(data.astronaut()), ("bobsled", "space shuttle")),
    }
    for name, (picture, classes) in shown.items():
        maps = _maps(loaded, picture, [class_index(one, loaded.class_names) for one in classes])
        _save(f"gallery/{name}.jpg", _sheet(picture, maps, classes))
        if name == "cat-and-espresso":
            _save("hero.jpg", _hero(picture, maps["hires-cam"], classes))
    squares = [_square(one) for one in (data.chelsea(), data.coffee(), data.rocket(), data.astronaut())]
    sheet, of_detectors = detection(loaded, squares)
    _save("gallery/detector.jpg", sheet)
    sheet, of_transformers = transformer()
    _save("gallery/transformer.jpg", sheet)
    _save("gallery/series.jpg", signals())
    _save("gallery/volume.jpg", volume())
    special = {**of_transformers, **of_detectors}
    photograph, classes = shown["cat-and-espresso"]
    special = {name: special[name] for name in ELSEWHERE}
    target = class_index(classes[0], loaded.class_names)
    for name, picture in {**special, **dict(every_method(loaded, photograph, target, special))}.items():
        small = cv2.resize(np.ascontiguousarray(picture), (SMALL, SMALL), interpolation=cv2.INTER_AREA)
        _save(f"gallery/methods/{name}.jpg", np.asarray(small))


def _maps(loaded: Any, picture: RGB, classes: list[int]) -> dict[str, torch.Tensor]:
    """Return the maps `(2, h, w)` of each method, all from one shared pass where methods allow it."""
    image = loaded.transform.finish(torch.from_numpy(picture)[None])
    cams: list[BaseCAM] = [METHODS[name](loaded.model, **FEWER.get(name, {})) for name in METHODS_SHOWN]
    found = explain_all(cams, image, torch.tensor([classes]))
    return {name: one[0] for name, one in zip(METHODS_SHOWN, found, strict=True)}


def _sheet(picture: RGB, maps: Mapping[str, torch.Tensor], classes: tuple[str, ...]) -> RGB:
    """Return a row for each class, with the methods in two blocks of columns."""
    rows, titles = [], []
    for block in (METHODS_SHOWN[:7], METHODS_SHOWN[7:]):
        for place, name in enumerate(classes):
            rows.append([picture, *(overlay(picture, maps[method][place]) for method in block)])
            titles.append(name)
    columns = [f"{a} / {b}" for a, b in zip(METHODS_SHOWN[:7], METHODS_SHOWN[7:], strict=True)]
    return contact_sheet(rows, column_titles=["picture", *columns], row_titles=titles)


def _hero(picture: RGB, maps: torch.Tensor, classes: tuple[str, ...]) -> RGB:
    """Return the photograph and the maps of two classes, and below them the report of a run."""
    sheet = contact_sheet([[picture, *overlays(np.stack([picture] * 2), maps)]], column_titles=["photograph", *classes])
    report = cv2.imread(str(DOCS / "report.jpg"))[..., ::-1]
    width = sheet.shape[1]
    report = cv2.resize(report, (width, round(report.shape[0] * width / report.shape[1])), interpolation=cv2.INTER_AREA)
    return np.concatenate([sheet, report])


def _square(picture: RGB) -> RGB:
    """Return the center square of a picture, at the size of the model's input."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    cut = np.ascontiguousarray(picture[top : top + side, left : left + side])
    return np.asarray(cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def _beside(left: RGB, right: RGB) -> RGB:
    """Return the middle of two pictures side by side."""
    half = SIDE // 2
    parts = [_square(picture)[:, half // 2 : half // 2 + half] for picture in (left, right)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _save(name: str, picture: RGB) -> None:
    write_picture(DOCS / name, picture)
    print(f"{DOCS / name}: {(DOCS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

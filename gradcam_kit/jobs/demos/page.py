"""The demo page: photographs with two classes each, explained by six different methods, with their cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from rich.console import Console
from torch import Tensor

from gradcam_kit.demo import sample_pictures
from gradcam_kit.errors import MissingExtraError
from gradcam_kit.jobs.progress import MethodProgress
from gradcam_kit.jobs.request import ModelRequest
from gradcam_kit.jobs.storage.addresses import check_local
from gradcam_kit.jobs.storage.claims import claim
from gradcam_kit.jobs.storage.folders import folder_at
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.meter import Meter
from gradcam_kit.methods import METHODS, BaseCAM, single_pass_methods
from gradcam_kit.methods.recommended import recommended
from gradcam_kit.models.photos import weights_file
from gradcam_kit.pages import data_uri, page_template
from gradcam_kit.pixels.pictures import RGB, encode_picture
from gradcam_kit.render import colorize, colormap_table

PAGE = "demo.html"

# One method of each family. Score-CAM with all 1280 channels would take forty times as long.
_METHODS: dict[str, dict[str, Any]] = {
    "grad-cam": {},
    "refine-cam": {},
    "recipro-cam": {},
    "full-grad": {},
    "score-cam": {"channels": 32},
    "eigen-cam": {},
}
_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN = 448  # maximum width and height of a displayed picture, in pixels


@dataclass(frozen=True)
class DemoPicture:
    """A picture to explain.

    Attributes:
        title: subject of the picture.
        note: hint about what to look for in the maps.
        second: name of the class that is explained besides the predicted class; None = the runner-up.
    """

    title: str
    note: str
    picture: RGB
    second: str | None = None


@dataclass(frozen=True)
class ShownMethod:
    """A method of the demo, and what it cost.

    Attributes:
        title: name and options of the method.
        good_for: what the method is good for.
        passes: cost per picture for both classes, in forward passes of the model.
        seconds: the time for all pictures and both classes.
        heatmaps: maps of the predicted and the second class for every picture.
    """

    name: str
    title: str
    good_for: str
    passes: float
    seconds: float
    heatmaps: Float[Tensor, "n two h w"]


@dataclass(frozen=True)
class DemoPage:
    """The result of the demo; if the weights for photographs are missing, `missing` tells what to install."""

    methods: tuple[ShownMethod, ...]
    page: Path
    model: str
    missing: str | None


def make_demo_page(out: Path, console: Console | None = None, overwrite: bool = False) -> DemoPage:
    """Explain pictures with six methods for two classes each, and write OUT/demo.html.

    If the weights of `mobilenet-v2` are installed, the pictures are photographs. Otherwise, the bundled model explains
    bundled pictures. Together, the methods take about 45 forward passes per picture.

    Args:
        out: folder for the page.
        console: where progress is shown; None = nowhere.
        overwrite: replace files that were not written by a demo.

    Raises:
        OptionError: `out` is on remote storage, cannot be written, or holds a file that no demo wrote and that would
            be replaced.
        CheckpointError: the file with the weights is damaged.
    """
    check_local(out, "demo")
    claim(folder_at(out), "demo.json", [PAGE], overwrite)
    missing = None
    try:
        weights_file()
    except MissingExtraError as error:
        missing = str(error)
    spec, pictures = ("demo", _bundled()) if missing else ("mobilenet-v2", _photographs())
    explainer = load_explainer(ModelRequest(spec, device="cpu"))
    images = torch.stack([explainer.loaded.transform(one.picture) for one in pictures])
    with torch.no_grad(), Meter(images.device) as meter:
        probabilities = explainer.model(images).softmax(1)
    passes = meter.lap().flops / len(images)
    targets = _two_classes(probabilities, pictures, explainer.loaded.class_names or ())
    methods = tuple(_explained(explainer, images, targets, passes, console))
    page = out / PAGE
    page.write_text(_render(explainer, pictures, probabilities, targets, methods, missing), encoding="utf-8")
    return DemoPage(methods, page, spec, missing)


def _explained(
    explainer: Explainer,
    images: Float[Tensor, "n c h w"],
    targets: Int[Tensor, "n two"],
    forward: float,
    console: Console | None,
) -> Iterator[ShownMethod]:
    """Yield each method with its maps and its cost, excluding the time for choosing layers."""
    good_for, quick = recommended(), single_pass_methods()
    layers = list(METHODS["grad-cam"](explainer.model).explain(images[:1]).layers)
    with MethodProgress(console, len(_METHODS)) as progress:
        for name, options in _METHODS.items():
            cam: BaseCAM = METHODS[name](explainer.model, None if name in quick else layers, **options)
            title = ", ".join([name, *(f"{option}={value}" for option, value in options.items())])
            with progress.method(title):
                if name in quick:
                    cam(images[:1])  # choose the layers here, so that the measured call does not have to
                with Meter(images.device) as meter:
                    heatmaps = cam(images, targets)
                    cost = meter.lap()
            passes = cost.flops / len(images) / forward
            yield ShownMethod(name, title, good_for[name], passes, cost.seconds, heatmaps)


def _two_classes(
    probabilities: Float[Tensor, "n k"], pictures: list[DemoPicture], names: tuple[str, ...]
) -> Int[Tensor, "n two"]:
    """Return the predicted class of each picture, and its second class: the given one or the runner-up."""
    best = probabilities.topk(2).indices
    for row, picture in zip(best, pictures, strict=True):
        if picture.second is not None:
            row[1] = names.index(picture.second)
    return best


def _photographs() -> list[DemoPicture]:
    from skimage import data

    cat, cup = (_resized(picture) for picture in (data.chelsea()[:225, :450], data.coffee()[70:370, :600]))
    return [
        DemoPicture(
            "A cat and a cup",
            "Two photographs in one image: maps that depend on the class move from the cup to the cat. Eigen-CAM "
            "ignores the class, so its map does not change.",
            np.concatenate([cat, cup]),
            "Egyptian cat",
        ),
        DemoPicture(
            "A rocket on its pad",
            "The top class is wrong, the second class is nearly right. For the top class, the maps highlight the "
            "masts and the ground.",
            data.rocket(),
            "space shuttle",
        ),
        DemoPicture(
            "An astronaut",
            "The network has no class for astronauts. The maps show what it mistook for the first class and, for the "
            "second class, the model of a shuttle behind her.",
            data.astronaut(),
            "space shuttle",
        ),
    ]


def _resized(picture: RGB) -> UInt8[np.ndarray, "300 600 3"]:
    return np.asarray(Image.fromarray(picture).resize((600, 300), Image.Resampling.LANCZOS))


def _bundled() -> list[DemoPicture]:
    samples = {sample.name.partition("-")[2]: sample for sample in sample_pictures()}
    return [
        DemoPicture(f"A bundled picture: {name}", "The second class is the runner-up.", samples[name].picture)
        for name in ("ring-medium", "triangle-large", "heart-medium")
    ]


def _render(
    explainer: Explainer,
    pictures: list[DemoPicture],
    probabilities: Float[Tensor, "n k"],
    targets: Int[Tensor, "n two"],
    methods: tuple[ShownMethod, ...],
    missing: str | None,
) -> str:
    """Return the page as a single HTML document, which loads nothing from the network."""
    names = explainer.loaded.class_names or ()
    shown = [
        _picture(explainer, one, index, [(names[k], float(row[k])) for k in classes.tolist()], methods)
        for index, (one, row, classes) in enumerate(zip(pictures, probabilities, targets, strict=True))
    ]
    return page_template("demo.html", _TEMPLATES).render(
        model=explainer.loaded.spec,
        pictures=shown,
        methods=methods,
        missing=missing,
        scale=",".join(f"rgb({r},{g},{b})" for r, g, b in colormap_table("jet")[::32].tolist()),
    )


def _picture(
    explainer: Explainer,
    picture: DemoPicture,
    index: int,
    classes: list[tuple[str, float]],
    methods: tuple[ShownMethod, ...],
) -> Mapping[str, Any]:
    """Return the template's data for a picture: the region that the model saw, and the maps of both classes."""
    x0, y0, x1, y1 = map(round, explainer.loaded.transform.box(*picture.picture.shape[:2]))
    seen = Image.fromarray(picture.picture).crop((x0, y0, x1, y1))
    seen.thumbnail((_SHOWN, _SHOWN))
    return {
        "title": picture.title,
        "note": picture.note,
        "data": _address(np.asarray(seen)),
        "ratio": f"{seen.width} / {seen.height}",
        "classes": [
            {
                "name": name,
                "score": "below 0.1 %" if score < 0.001 else f"{100 * score:.1f} %",
                "share": f"{100 * score:.1f}",
                "maps": [
                    (method, None if _is_empty(method, index, place) else _map(method, index, place))
                    for method in methods
                ],
            }
            for place, (name, score) in enumerate(classes)
        ],
    }


def _is_empty(method: ShownMethod, index: int, place: int) -> bool:
    return not bool(method.heatmaps[index, place].any())


def _map(method: ShownMethod, index: int, place: int) -> str:
    return _address(colorize(method.heatmaps[index, place].numpy()))


def _address(picture: RGB) -> str:
    return data_uri(encode_picture(picture, ".jpg"), "jpeg")

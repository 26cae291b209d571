"""The gallery beyond classifiers of photographs: boxes of a detector, a transformer, a series, a volume."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from benchmarks.ground_truth import series, tokens
from benchmarks.ground_truth.training import train
from gradcam_kit import METHODS, GradCAM, contact_sheet, overlay
from gradcam_kit.pixels.pictures import RGB
from gradcam_kit.targets import DetectionTarget

_CELL = 160


class PooledBoxes(nn.Module):
    """A detector made of a classifier: its maps, pooled in each of some boxes, go through its head.

    Args:
        network: MobileNetV2 of torchvision.
        boxes: `(x0, y0, x1, y1)` in pixels of the image.
    """

    def __init__(self, network: Any, boxes: Tensor) -> None:
        super().__init__()
        self.features, self.head = network.features, network.classifier
        self.register_buffer("boxes", boxes)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        maps = self.features(images)
        scale = maps.shape[-1] / images.shape[-1]
        boxes = self.get_buffer("boxes")
        pooled = roi_align(maps, [boxes] * len(images), 7, scale).mean((2, 3))
        best = self.head(pooled).softmax(1).unflatten(0, (len(images), -1)).max(2)
        return [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for scores, labels in zip(best.values, best.indices, strict=True)
        ]


def detection(loaded: Any, pictures: list[RGB]) -> tuple[RGB, dict[str, RGB]]:
    """Return the maps of each box of four pictures in one, and a picture for each method of detectors."""
    side = pictures[0].shape[0]
    whole = np.concatenate([np.concatenate(pictures[at : at + 2], axis=1) for at in (0, 2)])
    image = loaded.transform.finish(torch.from_numpy(whole)[None])
    model = PooledBoxes(loaded.model, _quarters(side)).eval()
    with torch.no_grad():
        output = model(image)
    targets = DetectionTarget.of(output, image=0, score_above=0)  # the best score first
    scores, labels = output[0]["scores"], output[0]["labels"]
    order = scores.argsort(descending=True).tolist()
    columns = [f"{loaded.class_names[int(labels[place])]} {scores[place]:.0%}" for place in order]
    methods = ("odam", "grad-cam")
    rows = [
        [overlay(whole, cam(image, one)[0], outlines=one.boxes[None]) for one in targets]
        for cam in (METHODS[name](model, "features") for name in methods)
    ]
    sheet = contact_sheet(rows, column_titles=columns, row_titles=list(methods))
    return sheet, {"odam": rows[0][0], "d-rise": _drise(loaded, whole)}


def _drise(loaded: Any, whole: RGB) -> RGB:
    """Return the map of D-RISE for the best box, of pictures half as large, because it masks them many times."""
    half = np.asarray(cv2.resize(whole, (whole.shape[1] // 2, whole.shape[0] // 2), interpolation=cv2.INTER_AREA))
    image = loaded.transform.finish(torch.from_numpy(half)[None])
    model = PooledBoxes(loaded.model, _quarters(half.shape[0] // 2)).eval()
    with torch.no_grad():
        target = DetectionTarget.of(model(image), image=0, score_above=0)[0]
    return overlay(half, METHODS["d-rise"](model, masks=200)(image, target)[0], outlines=target.boxes[None])


def _quarters(side: int) -> Tensor:
    """Return the boxes of four squares in one, in pixels."""
    return torch.tensor([(x, y, x + side, y + side) for y in (0, side) for x in (0, side)]).float()


def transformer() -> tuple[RGB, dict[str, RGB]]:
    """Return maps of a small transformer that names the color of a square, and a picture for each of its methods."""
    images, labels, _ = tokens.pictures(1000, 1)
    model = train(tokens.SmallViT, images, labels[:, 0], steps=220)
    tests, truth, _ = tokens.pictures(4, 2)
    names = (
        "balanced-cam",
        "generic-attention",
        "legrad",
        "grad-eclip",
        "attention-rollout",
        "vit-recipro-cam",
        "grad-cam",
    )
    shown = [_rgb(one) for one in tests]
    maps = {name: METHODS[name](model)(tests, truth[:, 0]) for name in names}
    rows = [[shown[i], *(overlay(shown[i], maps[name][i]) for name in names)] for i in range(len(shown))]
    sheet = contact_sheet(rows, column_titles=["image", *names], cell_size=_CELL)
    return sheet, {name: overlay(shown[0], one[0]) for name, one in maps.items()}


def signals() -> RGB:
    """Return two series with a pattern, colored by when the network saw it."""
    from matplotlib.figure import Figure

    walks, labels, _ = series.walks(1200, 1)
    model = train(series.over_time, walks, labels, steps=700)
    tests, truth, masks = series.walks(16, 2)
    chosen = torch.nonzero(truth == 1)[:2, 0]
    heatmaps = GradCAM(model, "3")(tests[chosen], 1)
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=100)
    for axes, walk, heat, mask in zip(figure.subplots(1, 2), tests[chosen], heatmaps, masks[chosen], strict=True):
        top = 4 * len(walk)
        axes.imshow(
            heat[None],
            aspect="auto",
            cmap="Reds",
            alpha=0.7,
            vmin=0,
            vmax=1,
            extent=(-0.5, len(heat) - 0.5, -4, top - 2),
        )
        for place, line in enumerate(walk):
            axes.plot(line + 4 * place, color="black", linewidth=1)
        times = torch.nonzero(mask.any(0))[:, 0]
        axes.plot([times[0], times[-1]], [top - 2.6] * 2, color="tab:blue", linewidth=5)
        axes.set(xlabel="time", yticks=[], ylim=(-4, top - 2), title="red: heatmap; blue: where the pattern is")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def volume() -> RGB:
    """Return slices of a volume whose class is decided by a bright ball, with their maps."""
    torch.manual_seed(0)
    axes = torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij")
    block = 0.15 * torch.rand(1, 1, 32, 32, 32)
    ball = sum((axis - place) ** 2 for axis, place in zip(axes, (12, 20, 10), strict=True)) < 36
    block[0, 0][ball] += 0.7
    network = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    heatmap = GradCAM(network.eval(), "1")(block, targets=int(network(block)[0].argmax()))[0]
    slices = (block[0, 0, 4:24:4, :, :, None].repeat(1, 1, 1, 3).clamp(0, 1) * 255).byte().numpy()
    large = [cv2.resize(one, (160, 160), interpolation=cv2.INTER_NEAREST) for one in slices]
    shown = [overlay(one, heat) for one, heat in zip(large, heatmap[4:24:4], strict=True)]
    return contact_sheet([large, shown], column_titles=[f"slice {4 + 4 * i}" for i in range(5)])


# With the numbers of their papers each of these would take minutes.
_FEWER: Mapping[str, dict[str, Any]] = {
    "score-cam": {"channels": 0.05},
    "is-cam": {"channels": 24},
    "ss-cam": {"channels": 24, "samples": 3},
    "rise": {"masks": 300},
}


def every_method(loaded: Any, picture: RGB, target: int, but: Mapping[str, RGB]) -> Iterator[tuple[str, RGB]]:
    """Yield the map of every method for one class of a photograph, except those that are given."""
    image = loaded.transform.finish(torch.from_numpy(picture)[None])
    for name, method in METHODS.items():
        if name not in but:
            cam = method(loaded.model, **_FEWER.get(name, {}))
            yield name, overlay(picture, cam(image, target)[0])


def _rgb(image: Tensor) -> RGB:
    """Return a drawn image, whose values are about -1 to 2, as a picture."""
    levels = ((image + 1) / 3).clamp(0, 1).permute(1, 2, 0).mul(255).byte().numpy()
    return np.asarray(cv2.resize(levels, (_CELL, _CELL), interpolation=cv2.INTER_NEAREST))

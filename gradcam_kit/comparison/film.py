"""HeatmapLogger: heatmaps of a fixed set of images during training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from gradcam_kit.capture import check_model, select_layers, untouched
from gradcam_kit.comparison.moving import write_film
from gradcam_kit.diagnostics import capture_features
from gradcam_kit.diagnostics.writing import GuardedWriters
from gradcam_kit.errors import GradCamKitError, InputError, ShapeError, kind_of
from gradcam_kit.methods import BaseCAM, Explanation
from gradcam_kit.options import positive_int
from gradcam_kit.pixels.pictures import rgb_pictures
from gradcam_kit.render import colorize, contact_sheet, overlays

_log = logging.getLogger("gradcam_kit")


class HeatmapLogger:
    """Explain the same images at regular steps while a model trains, and keep the heatmaps as frames of a film.

    Training is not affected: modes, random states, gradients, buffers and the results of a surrounding
    `ModelDiagnostics` block are identical to the last bit. After the first frame, a failure, such as NaN in a diverged
    model, is only logged as a warning, and its frame is skipped.

    Args:
        cam: a method for the model that is trained, such as `GradCAM(model, "layer4")`.
        images: the model's input `(n, c, h, w)`; a copy is kept.
        every: log at the first call of `step()`, and then once every `every` calls.
        writer: a `Writer` or a sequence of them; receives each frame and, with `features`, one picture of each
            layer.
        pictures: pictures on which the heatmaps are overlaid, `(n, h, w, c)` or `(n, c, h, w)`, uint8 or in [0, 1];
            None = the images themselves, each stretched to [0, 1] because model inputs are normalized.
        targets: the explained targets, as in a call of the method; None = the class that the model currently predicts.
        features: layers whose feature maps are logged too: names, wildcards, modules or types.
        channels: maximum number of feature maps to show for each layer.
        size: maximum width and height of each picture in a frame, in pixels.
        name: name under which writers receive the pictures.
        most_frames: maximum number of frames to keep. If it is exceeded, every second frame is dropped, and new frames
            are kept half as often from then on, so that memory is bounded.

    Attributes:
        frames: RGB pictures `(height, width, 3)`, the oldest first.
        steps: the training step of each frame.

    Raises:
        InputError: `cam` is not a method, or images are not `(n, c, h, w)`.
        LayerNotFoundError: a layer of `features` that the model does not have.
        ShapeError: the number of pictures differs from the number of images.
        OptionError: `every`, `channels`, `size` or `most_frames` below 1.

    Example:
        >>> from gradcam_kit import GradCAM
        >>> layers = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        >>> film = HeatmapLogger(GradCAM(torch.nn.Sequential(*layers)), torch.rand(2, 3, 16, 16), every=10)
        >>> for _ in range(11):
        ...     film.step()
        >>> film.steps
        [1, 11]
    """

    def __init__(
        self,
        cam: Any,
        images: Any,
        *,
        every: int = 100,
        writer: Any = None,
        pictures: Any = None,
        targets: Any = None,
        features: Any = (),
        channels: int = 8,
        size: int = 160,
        name: str = "heatmaps",
        most_frames: int = 256,
    ) -> None:
        """Keep a copy of the images. Options are not grouped in a record, because users type them in scripts."""
        if not isinstance(cam, BaseCAM):
            raise InputError(f"cam is {kind_of(cam)}; expected a method such as GradCAM(model)")
        if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
            found = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else kind_of(images)
            raise InputError(f"images are {found}; expected a tensor (n, c, h, w) with at least one image")
        self.cam: BaseCAM = cam
        self.targets, self.name = targets, str(name)
        self.model = check_model(cam.model)
        self.every, self.channels = positive_int("every", every), positive_int("channels", channels)
        self.most_frames, self.size = positive_int("most_frames", most_frames), positive_int("size", size)
        self._images = images.detach().clone()
        self._pictures = _shown(self._images, pictures)
        self._layers = list(select_layers(self.model, features).values()) if _is_given(features) else []
        self._writers = GuardedWriters(writer)
        self.frames: list[UInt8[np.ndarray, "height width 3"]] = []
        self.steps: list[int] = []
        self._count = 0
        self._logged, self._stride = 0, 1

    def step(self) -> None:
        """Count one training step, and log the heatmaps at the first step and then every `every` steps."""
        self._count += 1
        if (self._count - 1) % self.every == 0:
            self.log(self._count)

    def log(self, step: int) -> None:
        """Explain the images now, regardless of `every`, add a frame, and pass it to the writers.

        Args:
            step: the training step under which the frame is logged.

        Raises:
            GradCamKitError: the method cannot explain the images, and nothing has been logged yet; later failures are
                only logged as warnings.
        """
        try:
            explanation, grids = self._explain()
        except GradCamKitError as error:
            if not self._logged:
                raise
            _log.warning("no heatmaps at step %d: %s", step, error)
            return
        frame = self._frame(explanation, step)
        self._keep(frame, step)
        self._writers.image(self.name, frame, step)
        for layer, grid in grids.items():
            self._writers.image(f"{self.name}/features/{layer}", grid, step)

    def save(self, path: str | PathLike[str], *, fps: SupportsFloat = 5.0) -> Path:
        """Write the frames to a film, GIF or MP4 according to the suffix, and return its path.

        Args:
            path: output file, ending in `.gif` or `.mp4`; an existing file is replaced.
            fps: frames per second.

        Raises:
            CaptureError: there is no frame yet.
            OptionError: another suffix, or `fps` is not positive.
            PictureError: the installed OpenCV cannot write this format.
        """
        return write_film(path, self.frames, fps)

    def _explain(self) -> tuple[Explanation, dict[str, Any]]:
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != self._images.device:
            self._images = self._images.to(parameter.device)
        # One block around both passes hides them from a surrounding `ModelDiagnostics`.
        with untouched(self.model, self._images.device):
            explanation = self.cam.explain(self._images, self.targets)
            grids: dict[str, Any] = {}
            if self._layers:
                with torch.no_grad(), capture_features(self.model, self._layers, keep="cpu") as features:
                    self.model(self._images)
                grids = {
                    layer: _grid(feature.output, self.channels, max(self.size // 2, 1))
                    for layer, feature in features.items()
                }
        return explanation, grids

    def _frame(self, explanation: Explanation, step: int) -> UInt8[np.ndarray, "height width 3"]:
        maps = explanation.heatmaps.float().clamp(0, 1).cpu()
        if maps.ndim == 4:
            maps = maps[:, 0]
        titles = [""] * len(maps) if explanation.targets is None else _classes(explanation, self.cam)
        shown = overlays(self._pictures, maps)
        return contact_sheet(
            [list(self._pictures.numpy()), list(shown)],
            column_titles=titles, row_titles=["picture", f"step {step:06d}"], cell_size=self.size,
        )  # fmt: skip

    def _keep(self, frame: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        self._logged += 1
        if (self._logged - 1) % self._stride:
            return
        self.frames.append(frame)
        self.steps.append(int(step))
        if len(self.frames) > self.most_frames:
            self.frames, self.steps, self._stride = self.frames[::2], self.steps[::2], 2 * self._stride


def _is_given(layers: Any) -> bool:
    return layers is not None and not (isinstance(layers, list | tuple) and not layers)


def _classes(explanation: Explanation, cam: BaseCAM) -> list[str]:
    """Return the explained class of each image, by name if the model carries names."""
    assert explanation.targets is not None
    names: Sequence[str] | None = getattr(cam.model, "class_names", None)
    first = explanation.targets.reshape(len(explanation.targets), -1)[:, 0].tolist()
    return [str(names[one]) if names is not None and one < len(names) else f"class {one}" for one in first]


def _shown(images: Tensor, pictures: Any) -> UInt8[Tensor, "n h w 3"]:
    """Return the pictures on which the heatmaps are overlaid, on the CPU."""
    if pictures is None:
        values = images.float().cpu()
        values = values[:, :3] if values.shape[1] >= 3 else values[:, :1]
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        return rgb_pictures((values - low) / (high - low).clamp(min=1e-12)).contiguous()
    shown = rgb_pictures(pictures if isinstance(pictures, Tensor | np.ndarray) else np.stack(list(pictures)))
    if len(shown) != len(images):
        raise ShapeError(f"{len(shown)} pictures for {len(images)} images; expected one for each")
    return shown.cpu().contiguous()


def _grid(output: Any, channels: int, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """Render the first feature maps of each image in one row, scaled from their smallest to their largest value."""
    values = output if isinstance(output, Tensor) else next(iter(output))
    while values.ndim < 4:
        values = values.unsqueeze(-2)  # show units and tokens as stripes
    maps = torch.nan_to_num(values.float())[:, :channels]
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    levels = ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return contact_sheet([list(colorize(own, "viridis")) for own in levels], cell_size=size, margin=4)

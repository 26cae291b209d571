"""`Explanation`: the result of a call, and how it renders itself in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.foreign import says_what_it_is_here
from gradcam_kit.types import GradientRule

if TYPE_CHECKING:
    from gradcam_kit.methods.engine.showing import RenderedPicture

_SHOWN = 8


class _OnFirstUse:
    """A lazy dataclass field: a callable given as its value is called once, when the field is first read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            raise AttributeError(self.name)  # so that `dataclass` finds no default
        value = instance.__dict__[self.name]
        if callable(value):
            value = instance.__dict__[self.name] = value()
        return value

    def __set__(self, instance: object, value: Any) -> None:
        instance.__dict__[self.name] = value


@dataclass(frozen=True, eq=False)
class Explanation:
    """Heatmaps and everything else that the pass produced. Axes: n samples, m targets (only for `(n, m)` targets).

    Attributes:
        heatmaps: `(n, [m,] *t)` float32 at the size of the images, in [0, 1] unless `normalize="none"`; computed when
            first read, because the maps of a thousand classes are small at the layer's resolution and huge at the
            input's.
        saliency: layer name -> signed map `(n, [m,] *s)` at the layer's resolution, before ReLU and normalization.
        targets: class indices `(n, [m])`, or None for a target that is a callable.
        scores: the explained scores `(n, [m])`; None if a class-agnostic method ran on a model whose output has no
            readable scores.
        output: the model's output, detached.
        layers: names of the target layers.
        is_empty: `(n, [m])`, True where there was no positive evidence, so that the heatmap is all zeros.
        gradient_rule: rule of the gradients, "exact" or "balanced".
        empty_because: why all maps are empty; "" if some map is not, and always "" on devices where the check would
            synchronize.
    """

    if TYPE_CHECKING:
        heatmaps: Tensor
    else:
        heatmaps: Any = _OnFirstUse()
    saliency: Mapping[str, Float[Tensor, "n *ms"]]
    targets: Int[Tensor, "n *m"] | None
    scores: Float[Tensor, "n *m"] | None
    output: Any
    layers: tuple[str, ...]
    is_empty: Bool[Tensor, "n *m"]
    empty_because: str = ""
    gradient_rule: GradientRule = "exact"

    @says_what_it_is_here
    def overlay(
        self,
        picture: Any,
        image: int = 0,
        target: int = 0,
        *,
        transform: Any = None,
        box: Any = None,
        colormap: str = "jet",
        alpha: float = 0.5,
    ) -> RenderedPicture:
        """Overlay a heatmap on its picture.

        Args:
            picture: the picture from which the image was made: an array, a tensor or a PIL image, of any size.
            image: index of the image in the batch.
            target: index among the m targets of the image.
            transform: the transform that made the image; its `box` is the part of the picture that the model saw.
            box: the part of the picture that the model saw, `(x0, y0, x1, y1)` in pixels of the picture; None = that of
                `transform`, or else the whole picture.
            colormap: one of `gradcam_kit.render.COLORMAPS`.
            alpha: opacity of the heatmap, in [0, 1].

        Returns:
            A uint8 array `(h, w, 3)` with a method `save(path)`.

        Raises:
            OptionError: an image or a target that was not explained.
            ShapeError: maps of signals or volumes.
        """
        from gradcam_kit.methods.engine.showing import overlay_of

        return overlay_of(self, picture, image, target, transform, box, {"colormap": colormap, "alpha": alpha})

    def save(self, path: str | PathLike[str], pictures: Sequence[Any] | None = None, *, transform: Any = None) -> None:
        """Write a contact sheet with a row per image: picture and overlays if `pictures` are given, else colored maps.

        Args:
            path: the file; its suffix names the format.
            pictures: one picture for each image, as in `overlay`.
            transform: the transform that made the images, as in `overlay`.

        Raises:
            ShapeError: unequal numbers of pictures and images, or maps of signals or volumes.
            PictureError: a suffix that does not name a picture format, or a path that cannot be written to.
        """
        from gradcam_kit.methods.engine.showing import sheet_of

        sheet_of(self, pictures, transform).save(path)

    def plot(self, pictures: Sequence[Any] | None = None, *, transform: Any = None) -> Any:
        """Return the sheet of `save` as a matplotlib `Figure`.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ShapeError: as for `save`.
        """
        from gradcam_kit.methods.engine.showing import sheet_of
        from gradcam_kit.pixels.figures import figure_of

        return figure_of(sheet_of(self, pictures, transform), ", ".join(self.layers))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "heatmaps": self.heatmaps}

    def __repr__(self) -> str:
        parts = [f"{' x '.join(map(str, self.is_empty.shape))} maps", f"layers={list(self.layers)}"]
        if self.targets is not None and self.targets.numel() <= _SHOWN:
            parts.append(f"targets={self.targets.tolist()}")
        if self.gradient_rule != "exact":
            parts.append(f"gradient_rule={self.gradient_rule!r}")
        return f"Explanation({', '.join(parts)}{self._empty_maps()})"

    def _empty_maps(self) -> str:
        """Return a phrase that counts the empty maps, or "" if no map is empty."""
        empty = int(self.is_empty.sum())
        return f", {empty} of {self.is_empty.numel()} maps without positive evidence" if empty else ""

    def _repr_html_(self) -> str:
        from gradcam_kit.pages import data_uri
        from gradcam_kit.pixels.pictures import encode_picture
        from gradcam_kit.render import colorize

        maps = self.heatmaps.reshape(self.heatmaps.shape[0], -1, *self.heatmaps.shape[self.is_empty.ndim :])
        empty = self.is_empty.reshape(maps.shape[:2])
        cells = []
        highest = float(maps.amax()) if maps.numel() else 0.0
        maps = maps / max(highest, 1.0)  # without normalization, values may exceed 1
        for i in range(min(len(maps), _SHOWN)):
            for j in range(min(maps.shape[1], _SHOWN)):
                picture = ""
                if maps.ndim == 4:
                    data = data_uri(encode_picture(colorize(maps[i, j]), ".png"), "png")
                    picture = f'<img src="{data}" style="height:140px"><br>'
                cells.append(
                    f'<td style="text-align:left">{picture}{escape(self._title(i, j, bool(empty[i, j])))}</td>'
                )
        more = f"<p>and {len(maps) - _SHOWN} more</p>" if len(maps) > _SHOWN else ""
        shape = " x ".join(map(str, self.heatmaps.shape))
        rule = "" if self.gradient_rule == "exact" else f", {self.gradient_rule} gradients"
        head = f"Explanation {shape}, {escape(', '.join(self.layers))}{rule}{self._empty_maps()}"
        return f"<p>{head}</p><table><tr>{''.join(cells)}</tr></table>{more}"

    def _title(self, i: int, j: int, empty: bool) -> str:
        parts = [f"image {i}"]
        if self.targets is not None:
            parts.append(f"class {int(self.targets.reshape(len(self.targets), -1)[i, j])}")
        if self.scores is not None:
            parts.append(f"score {float(self.scores.reshape(len(self.scores), -1)[i, j]):.3g}")
        if empty:
            parts.append("no positive evidence")
        return ", ".join(parts)

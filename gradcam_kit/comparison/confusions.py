"""Result of `analyze_mistakes`: pairs of classes that a model confuses, with heatmaps."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from gradcam_kit.errors import missing_extra
from gradcam_kit.pixels.pictures import RGB

if TYPE_CHECKING:
    import pandas

_LINES = 20  # maximum number of pairs shown in the terminal and in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class MistakenImage:
    """An image for which the model predicts a wrong class.

    Attributes:
        index: position of the image in the loader, from 0.
        score: score of the predicted class.
        label_score: score of the label's class.
        heatmap: the heatmap for the predicted class, in [0, 1].
        jpeg: the image as a JPEG file, at most 160 pixels wide and high.
    """

    index: int
    score: float
    label_score: float
    heatmap: Float[np.ndarray, "h w"]
    jpeg: bytes

    @property
    def picture(self) -> RGB:
        """The decoded JPEG file, as uint8 RGB."""
        with Image.open(io.BytesIO(self.jpeg)) as image:
            return np.asarray(image.convert("RGB"))

    def __repr__(self) -> str:
        return f"MistakenImage({self.index}, score={self.score:.3g})"


@dataclass(frozen=True, eq=False, repr=False)
class ConfusedPair:
    """Images of one class that the model mistakes for another class.

    Attributes:
        label: class index of the label.
        predicted: class index of the prediction.
        label_name: name of the label, or its index if the names are not known.
        predicted_name: name of the predicted class, or its index if the names are not known.
        count: number of images of this pair.
        share: `count` divided by the number of images with this label.
        heatmap: mean heatmap over the images of the pair, for the predicted class.
        label_heatmap: mean heatmap over the correctly predicted images of the label's class; None without such images.
        predicted_heatmap: mean heatmap over the correctly predicted images of the predicted class; None without such
            images.
        examples: the most confident mistakes.
    """

    label: int
    predicted: int
    label_name: str
    predicted_name: str
    count: int
    share: float
    heatmap: Float[np.ndarray, "h w"]
    label_heatmap: Float[np.ndarray, "h w"] | None
    predicted_heatmap: Float[np.ndarray, "h w"] | None
    examples: tuple[MistakenImage, ...]

    def __repr__(self) -> str:
        return f"ConfusedPair({self.label_name} -> {self.predicted_name}, {self.count})"


@dataclass(frozen=True, eq=False, repr=False)
class Mistakes:
    """The confusions of a model on a data set. Notebooks display the most frequent pairs as a list.

    Attributes:
        pairs: the confused pairs, the most frequent first.
        counts: (label, predicted) -> number of images; correct predictions are included.
        n: number of images.
        classes: number of the model's classes.
        class_names: names of the classes; None if they are not known.
        model: class name of the model.
        method: name of the method that made the heatmaps.
        layers: names of the layers of the heatmaps.
        scores: description of the scores in words.
        is_share: whether scores are probabilities, which are shown in percent.
    """

    pairs: tuple[ConfusedPair, ...]
    counts: Mapping[tuple[int, int], int]
    n: int
    classes: int
    class_names: Sequence[str] | None
    model: str
    method: str
    layers: tuple[str, ...]
    scores: str
    is_share: bool = field(default=True)

    @property
    def wrong(self) -> int:
        """The number of incorrectly predicted images."""
        return sum(pair.count for pair in self.pairs)

    @property
    def accuracy(self) -> float:
        """The share of correctly predicted images."""
        return 1 - self.wrong / self.n

    @property
    def confusion(self) -> Int[Tensor, "classes classes"]:
        """The number of images of each label (rows) predicted as each class (columns)."""
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.long)
        for (label, predicted), count in self.counts.items():
            matrix[label, predicted] = count
        return matrix

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each pair: class names, class indices, count, share, and the indices of its examples."""
        return [
            {
                "label": pair.label_name,
                "predicted": pair.predicted_name,
                "label_index": pair.label,
                "predicted_index": pair.predicted,
                "count": pair.count,
                "share": pair.share,
                "images": [one.index for one in pair.examples],
            }
            for pair in self.pairs
        ]

    @property
    def table(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("tables need pandas", "notebook", "rows() returns the same as plain values") from error
        return pd.DataFrame(self.rows())

    @overload
    def to_html(self) -> str: ...
    @overload
    def to_html(self, path: str | PathLike[str]) -> Path: ...
    def to_html(self, path: str | PathLike[str] | None = None) -> str | Path:
        """Return the page as HTML that needs no network, or write it to a file and return the path."""
        from gradcam_kit.comparison.confusions_page import render_confusions

        text = render_confusions(self)
        if path is None:
            return text
        target = Path(path)
        target.write_text(text, encoding="utf-8")
        return target

    def said(self, score: float) -> str:
        """Return a score as text, in percent if scores are probabilities."""
        return f"{score:.0%}" if self.is_share else f"{score:.3g}"

    def __str__(self) -> str:
        lines = [
            f"{pair.label_name} -> {pair.predicted_name}: {pair.count:,} ({pair.share:.0%} of images with this label)"
            for pair in self.pairs[:_LINES]
        ]
        more = [f"and {len(self.pairs) - _LINES:,} more pairs"] * (len(self.pairs) > _LINES)
        head = f"Incorrect predictions: {self.wrong:,} of {self.n:,} images. Confused pairs: {len(self.pairs):,}."
        return "\n".join([head, *lines, *more])

    def __repr__(self) -> str:
        return f"Mistakes({self.wrong} of {self.n} images, {len(self.pairs)} pairs)"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

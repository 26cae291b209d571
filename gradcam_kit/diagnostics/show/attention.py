"""Show attention heads: on words for the terminal, and on pictures as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.diagnostics.attention_records import LayerAttention
from gradcam_kit.diagnostics.captured_attention import CapturedAttention
from gradcam_kit.diagnostics.show.plots import figure
from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import normalize
from gradcam_kit.options import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = 30  # width of a bar in columns of the terminal
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SHADES = (231, 225, 219, 213, 207, 201, 200, 199, 198, 197)  # shades from white to red, in the 256 colors of terminals


def text(
    captured: CapturedAttention, layer: LayerAttention, sample: int, head: int | None, query: int | None, color: bool
) -> str:
    """Return the words with their attention as text: on shades of red if `color`, else with bars."""
    words = captured.words(layer, sample)
    shares = captured.shares(layer.name, query)[sample]
    if head is not None and not -len(shares) <= whole("head", head) < len(shares):
        raise OptionError(f"head is {head}; expected the index of one of the {len(shares)} heads of {layer.name!r}")
    own = (shares.mean(0) if head is None else shares[head]).tolist()
    which = "mean of all heads" if head is None else f"head {head}"
    of = "mean query" if query is None else f"query {words[query] if len(words) == layer.shape[2] else query!r}"
    lines = [f"{layer.name}, {which}, {of}"]
    largest = max(own) or 1.0
    if color:
        lines.append(" ".join(_shaded(word, share / largest) for word, share in zip(words, own, strict=True)))
        return "\n".join(lines)
    width = min(max(map(len, words)), 24)
    lines += [
        f"{word[:24]:<{width}}  {_bar(share / largest)} {share:.3f}" for word, share in zip(words, own, strict=True)
    ]
    return "\n".join(lines)


def _bar(share: float) -> str:
    eighths = round(max(share, 0.0) * _BAR * 8) if math.isfinite(share) else 0
    return f"{'█' * (eighths // 8)}{_EIGHTHS[eighths % 8]}".ljust(_BAR + 1)


def _shaded(word: str, share: float) -> str:
    shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)] if math.isfinite(share) else _SHADES[0]
    return f"\x1b[48;5;{shade};38;5;16m{word}\x1b[0m"


def plot_heads(
    captured: CapturedAttention, layer: LayerAttention, picture: Any, sample: int, query: int | None
) -> Figure:
    """Plot one panel for each head, preceded by the mean of all heads."""
    captured.words(layer, sample)  # raises an error if the sample does not exist
    panels = on_picture(captured, layer, picture, sample, query)
    heads = layer.shape[1]
    total = heads + 1
    columns = min(total, 5)
    rows = math.ceil(total / columns)
    drawn = figure(2.0 * columns, 2.15 * rows + 0.4)
    entropies = layer.entropy[sample].tolist()
    for place, axes in enumerate(drawn.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
        if place < total:
            axes.imshow(panels[place], cmap="viridis", interpolation="nearest")
            title = "mean" if place == 0 else f"head {place - 1}, entropy {entropies[place - 1]:.2f}"
            axes.set_title(title, fontsize=8, pad=3)
    drawn.suptitle(layer.name, fontsize=9)
    return drawn


def on_picture(
    captured: CapturedAttention, layer: LayerAttention, picture: Any, sample: int, query: int | None
) -> list[Any]:
    """Return arrays of the mean of all heads and of each head: overlays, maps on a grid, or matrices of tokens.

    Raises:
        ShapeError: a picture is given, but the tokens do not form a grid.
    """
    try:
        maps = captured.maps(layer.name, query=query)[sample]
    except ShapeError:
        if picture is not None:
            raise
        matrix: Float[Tensor, "heads q k"] = layer.probabilities[sample]
        return [own.cpu().numpy() for own in (matrix.mean(0), *matrix)]
    own = normalize(torch.cat([maps.mean(0, keepdim=True), maps]))
    if picture is None or own.ndim != 3:
        return [one.cpu().numpy() for one in own]
    from gradcam_kit.render import overlay  # imported here, because it needs OpenCV

    return [overlay(picture, one.cpu()) for one in own]

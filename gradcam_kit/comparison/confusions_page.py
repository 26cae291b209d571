"""Render the page about a model's mistakes, from a template that escapes all text."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradcam_kit.comparison.confusions import ConfusedPair, MistakenImage, Mistakes
from gradcam_kit.pages import data_uri, page_template
from gradcam_kit.pixels.pictures import encode_picture
from gradcam_kit.render import colorize

_TEMPLATES = Path(__file__).parent / "templates"
_PAIRS = 60  # maximum number of pairs on the page


def render_confusions(mistakes: Mistakes) -> str:
    """Return the page as one HTML document that needs no network."""
    shown = mistakes.pairs[:_PAIRS]
    return page_template("mistakes.html", _TEMPLATES).render(
        mistakes=mistakes,
        pairs=[_pair(pair, mistakes) for pair in shown],
        hidden=len(mistakes.pairs) - len(shown),
        most=shown[0].count if shown else 1,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _pair(pair: ConfusedPair, mistakes: Mistakes) -> dict[str, Any]:
    means = (
        (f"{pair.label_name}, taken for {pair.predicted_name}", pair.heatmap),
        (f"{pair.label_name}, when right", pair.label_heatmap),
        (f"{pair.predicted_name}, when right", pair.predicted_heatmap),
    )
    return {
        "pair": pair,
        "means": [(text, None if mean is None else _mean(mean)) for text, mean in means],
        "examples": [_example(one, pair, mistakes) for one in pair.examples],
    }


def _example(one: MistakenImage, pair: ConfusedPair, mistakes: Mistakes) -> dict[str, Any]:
    height, width = one.picture.shape[:2]
    return {
        "picture": data_uri(one.jpeg, "jpeg"),
        "heatmap": _png(one.heatmap),
        "ratio": f"{width} / {height}",
        "said": f"{pair.predicted_name} {mistakes.said(one.score)}, {pair.label_name} {mistakes.said(one.label_score)}",
        "index": one.index,
    }


def _mean(heatmap: Float[np.ndarray, "h w"]) -> str:
    """Return a mean heatmap as a PNG, scaled so that its maximum has the hottest color."""
    largest = float(heatmap.max())
    return _png(heatmap / largest if largest > 0 else heatmap)


def _png(heatmap: Float[np.ndarray, "h w"]) -> str:
    return data_uri(encode_picture(colorize(heatmap.clip(0, 1)), ".png"), "png")

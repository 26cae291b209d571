"""Render captured attention as one HTML page that needs neither network nor scripts."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from gradcam_kit.diagnostics.attention_records import LayerAttention
from gradcam_kit.diagnostics.captured_attention import CapturedAttention
from gradcam_kit.diagnostics.show.attention import on_picture
from gradcam_kit.errors import ShapeError
from gradcam_kit.pages import data_uri

_MOST_WORDS = 128
_SIDE = 96  # height and width of the map of one head in pixels; larger maps get twice this size

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
pre { white-space: pre-wrap; margin: 0.3rem 0; font: inherit; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
td, th { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; }
figure { display: inline-block; margin: 0.2rem 0.4rem 0.2rem 0; font-size: 12px; }
figure img { display: block; width: 96px; height: 96px; image-rendering: pixelated; }
.words span { padding: 0.1rem 0.15rem; border-radius: 3px; }
summary { cursor: pointer; }
"""


def attention_page(captured: CapturedAttention, picture: Any, sample: int) -> str:
    """Return captured attention as an HTML page."""
    findings = "".join(f"<pre>{escape(str(one))}</pre>" for one in captured.findings) or "<p>Nothing to report.</p>"
    notes = "".join(f"<p>{escape(note)}</p>" for note in captured.notes)
    layers = list(captured.values())
    parts = "".join(
        f"<details{' open' * (place == len(layers) - 1)}><summary>{escape(layer.name)} {layer.shape}</summary>"
        f"{_heads(captured, layer, picture, sample)}</details>"
        for place, layer in enumerate(layers)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Attention</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>Attention</h1>'
        f"<h2>Findings</h2>{findings}{notes}<h2>Entropy: 0 = one key, 1 = all keys equally</h2>{_table(captured)}"
        f"<h2>Heads</h2>{parts}</body></html>"
    )


def _table(captured: CapturedAttention) -> str:
    heads = max((layer.shape[1] for layer in captured.values()), default=0)
    head = "".join(f"<th>{place}</th>" for place in range(heads))
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td style="background:{_shade(own)}">{own:.2f}</td>' for own in entropy.mean(0).tolist())
        + "</tr>"
        for name, entropy in captured.entropy.items()
    )
    return f"<table><tr><th>layer</th>{head}</tr>{rows}</table>"


def _heads(captured: CapturedAttention, layer: LayerAttention, picture: Any, sample: int) -> str:
    """Return the heads as HTML: on the words if they fit the layer, else on a picture that fits, else as plain maps."""
    if captured.tokens is not None:
        try:
            return _on_words(captured, layer, sample)
        except ShapeError:  # skipped: the words belong to another part of the model
            pass
    try:
        panels = on_picture(captured, layer, picture, sample % layer.shape[0], None)
    except ShapeError:  # skipped: the picture belongs to another part of the model
        panels = on_picture(captured, layer, None, sample % layer.shape[0], None)
    names = ["mean", *(f"head {head}" for head in range(layer.shape[1]))]
    return "".join(
        f'<figure><img alt="{name}" src="{_png(panel)}"><figcaption>{name}</figcaption></figure>'
        for name, panel in zip(names, panels, strict=True)
    )


def _on_words(captured: CapturedAttention, layer: LayerAttention, sample: int) -> str:
    words = captured.words(layer, sample % layer.shape[0])
    shares = captured.shares(layer.name)[sample % layer.shape[0]]
    lines = [("mean", shares.mean(0).tolist())]
    if len(words) <= _MOST_WORDS:
        lines += [(f"head {head}", own) for head, own in enumerate(shares.tolist())]
    return "".join(
        f'<p class="words">{name}: '
        + " ".join(
            f'<span title="{share:.3f}" style="background:{_shade(share / (max(own) or 1.0))}">{escape(word)}</span>'
            for word, share in zip(words, own, strict=True)
        )
        + "</p>"
        for name, own in lines
    )


def _shade(share: float) -> str:
    return f"rgba(221,107,32,{min(max(share, 0.0), 1.0):.2f})"


def _png(panel: Any) -> str:
    from gradcam_kit.pixels.opencv import cv2
    from gradcam_kit.render import colorize

    array = np.asarray(panel)
    if array.ndim == 2:
        span = float(array.max() - array.min()) or 1.0
        array = colorize(((array - array.min()) / span).astype(np.float32), "viridis")
    side = max(_SIDE, *array.shape[:2]) if max(array.shape[:2]) <= _SIDE else 2 * _SIDE
    shrinks = max(array.shape[:2]) > side
    array = cv2.resize(array, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(array[..., ::-1]))
    return data_uri(encoded.tobytes(), "png")

"""Render a report as a single HTML file that needs no network."""

from __future__ import annotations

import io

from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.show.plots import plot_ledger
from gradcam_kit.errors import CaptureError, MissingExtraError

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
pre { white-space: pre-wrap; margin: 0.3rem 0; font: inherit; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
td, th { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; }
figure { margin: 1.5rem 0; background: #fff; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""


def document(ledger: Ledger, report: Report) -> str:
    """Return the page as HTML: findings, the table of layers and, if matplotlib is installed, plots."""
    figures = "".join(f"<figure>{svg}</figure>" for kind in ("gradients", "activations") if (svg := _svg(ledger, kind)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Diagnostics of {ledger.model}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>Diagnostics of {ledger.model}</h1>{report._repr_html_()}{figures}</body></html>"
    )


def _svg(ledger: Ledger, kind: str) -> str:
    try:
        drawn = plot_ledger(ledger, kind)
    except (CaptureError, MissingExtraError):
        return ""
    stream = io.StringIO()
    drawn.savefig(stream, format="svg")
    text = stream.getvalue()
    return text[text.index("<svg") :]

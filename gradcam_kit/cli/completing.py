"""Complete option values in the shell; nothing is loaded until a completion is requested."""

from __future__ import annotations

from collections.abc import Callable

Completion = Callable[[str], list[str]]


def one_of(*names: str) -> Completion:
    """Return a completion function for the given names."""

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return completed


def methods(incomplete: str) -> list[str]:
    """Return the methods that begin with this text, in the order in which to try them."""
    from gradcam_kit.methods.recommended import recommended

    return one_of(*recommended())(incomplete)


def metrics(incomplete: str) -> list[str]:
    """Return the metrics that begin with this text."""
    from gradcam_kit.metrics import METRICS

    return one_of(*METRICS)(incomplete)

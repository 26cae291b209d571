"""Advice to use BalancedCAM, logged once by each method that explains tokens with exact gradients."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gradcam_kit.capture import Capture
from gradcam_kit.methods.contract import Method, rule_of
from gradcam_kit.types import Evidence

_log = logging.getLogger("gradcam_kit")
_ADVISED = "_advised_of_tokens"


def advise(cam: Method, captured: Capture, layers: Iterable[str]) -> None:
    """Recommend BalancedCAM, once per method object, if an automatically chosen layer returns tokens."""
    if cam.target_layers is not None or not cam.needs & Evidence.RULED or rule_of(cam) != "exact":
        return
    tokens = [name for name in layers if captured.has_tokens(name)]
    if tokens and not is_advised(cam):
        vars(cam)[_ADVISED] = True
        _log.info(
            "%s explains the tokens of %s with exact gradients, which localize a transformer's evidence "
            "poorly; BalancedCAM is made for token models",
            type(cam).__name__,
            ", ".join(tokens),
        )


def is_advised(cam: Method) -> bool:
    """Whether `advise` has recommended BalancedCAM for this method."""
    return bool(vars(cam).get(_ADVISED))

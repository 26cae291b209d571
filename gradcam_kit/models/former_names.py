"""Checkpoints under names that the modules of a model still understand, although they have others now."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from gradcam_kit.errors import raise_interruption
from gradcam_kit.models.copying import copied


def understood(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state dict that modules make of one with other names or without some; None if they refuse it.

    Batch norms had no `num_batches_tracked` once, `weight_norm` had `weight_g` and `weight_v`, and modules of users
    rename in hooks of their own. A copy of the model is asked, which the attempt may spoil.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as of imaginary parts that are lost
            twin = copied(model)
            twin.load_state_dict(dict(given))
            return dict(twin.state_dict())
    except Exception as error:  # modules may load in ways of their own
        raise_interruption(error)
        return None

"""Load checkpoints with former names that the modules of a model still understand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from gradcam_kit.errors import raise_interruption
from gradcam_kit.models.copying import copied


def understood(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a state dict after the modules of a model converted former or missing names; None if they refuse it.

    Batch norms once had no `num_batches_tracked`, `weight_norm` had `weight_g` and `weight_v`, and users' modules
    rename in their own hooks. A copy of the model is used, because the attempt may damage it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # treat warnings as refusals, such as that a cast discards imaginary parts
            twin = copied(model)
            twin.load_state_dict(dict(given))
            return dict(twin.state_dict())
    except Exception as error:  # modules may override loading
        raise_interruption(error)
        return None

"""Convert former names in checkpoints, as far as the modules of a model still accept them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from gradcam_kit.errors import raise_interruption
from gradcam_kit.models.copying import copied


def understood(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a state dict after a model's modules converted former names and added missing ones; None if they refuse.

    For example, batch norms once had no `num_batches_tracked`, `weight_norm` had `weight_g` and `weight_v`, and hooks
    of users' modules may rename entries. The attempt is made on a copy of the model, because a failure may damage it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning is a refusal, such as one about lost imaginary parts
            twin = copied(model)
            twin.load_state_dict(dict(given))
            return dict(twin.state_dict())
    except Exception as error:  # modules may override loading
        raise_interruption(error)
        return None

"""The error for an output without one obvious tensor of scores suggests a target that works."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from gradcam_kit.errors import TargetError
from gradcam_kit.targets.outputs import read_logits


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((torch.rand(2, 3), torch.rand(2, 20)), "output[0][:, 2]"),
        ({"maps": torch.rand(2, 20, 3, 3), "rows": torch.rand(2, 20)}, "output['rows'][:, 7]"),
        ((torch.rand(2, 6, 84), [torch.rand(2, 10, 4, 4)]), "output[0][:, 5].amax(1)"),
        ((torch.rand(2, 84, 6), [torch.rand(2, 10, 4, 4)]), "output[0][..., 5].amax(1)"),
        ((torch.rand(2, 9, 4, 4), torch.rand(2, 5, 4, 4)), "output[0][:, 7].amax((1, 2))"),
        ((torch.rand(2, 9, 4, 4, 4), torch.rand(2, 5, 4, 4)), "output[0][:, 7].amax((1, 2, 3))"),
    ],
    ids=["classes", "mapping", "anchors last", "anchors first", "maps", "volumes"],
)
def test_the_target_that_the_error_suggests_gives_one_score_per_image(output: Any, said: str) -> None:
    with pytest.raises(TargetError) as raised:
        read_logits(output)
    [suggested] = re.findall(r"such as (lambda output: .*?) or those", str(raised.value))
    assert suggested == f"lambda output: {said}"
    assert eval(suggested)(output).shape == (2,)


def test_nothing_is_suggested_that_would_fail() -> None:
    with pytest.raises(TargetError, match="such as a lambda that picks"):
        read_logits([[torch.rand(2, 3), torch.rand(2, 3)]])

"""Shapes in signatures are checked while tests run, in functions, methods and records, and nowhere twice."""

from __future__ import annotations

import pytest
import torch
from checked_shapes import checked
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from gradcam_kit.functional import upsample
from gradcam_kit.metrics import MetricResult
from gradcam_kit.options import one_of
from gradcam_kit.similarity import check_pair, pearson

Maps = Float[Tensor, "n *t"]


def test_wrong_shapes_are_refused_in_functions_and_records() -> None:
    assert pearson(torch.rand(2, 5), torch.rand(2, 5)).shape == (2,)
    for one, other in ((torch.ones(2, 5), torch.ones(3, 5)), (torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5))):
        with pytest.raises(TypeCheckError):
            pearson(one, other)
    with pytest.raises(TypeCheckError):
        upsample(torch.ones(2, 3, dtype=torch.long), (4,))
    with pytest.raises(TypeCheckError):
        MetricResult(torch.ones(2), torch.zeros(3, dtype=torch.long), {}, {})


def test_what_has_no_shape_is_not_wrapped() -> None:
    assert hasattr(pearson, "__wrapped__")
    assert not hasattr(one_of, "__wrapped__")
    assert not hasattr(check_pair, "__wrapped__")


def test_a_shape_may_have_another_name() -> None:
    def doubled(maps: Maps) -> Tensor:
        return 2 * maps

    with pytest.raises(TypeCheckError):
        checked(doubled)(torch.ones(3, dtype=torch.long))

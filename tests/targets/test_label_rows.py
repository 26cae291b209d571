"""Rows of labels are not class indices: what is refused, and what to pass instead."""

from __future__ import annotations

import pytest
import torch
from models import conv_model, images, tiny

from gradcam_kit import GradCAM
from gradcam_kit.errors import TargetError

INPUT = images(3)
MULTI_HOT = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]])


def test_multi_label_data_is_explained_as_the_refusal_says() -> None:
    model, labels = tiny(), MULTI_HOT[:2].bool()
    heatmaps = GradCAM(model, "relu2")(INPUT[:2], torch.arange(5).expand(2, -1))
    expected = [GradCAM(model, "relu2")(INPUT[i : i + 1], int(j))[0] for i, j in labels.nonzero().tolist()]
    torch.testing.assert_close(heatmaps[labels], torch.stack(expected))


def test_two_classes_may_be_asked_for_in_either_order() -> None:
    model = conv_model(output=lambda logits: logits[:, :2])
    assert GradCAM(model, "layer").explain(INPUT[:2], [[0, 1], [1, 0]]).targets.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(TargetError, match="are multi-hot"):
        GradCAM(model, "layer")(INPUT[:2], [[1, 1], [0, 1]])

"""The examples of CONTRIBUTING.md work as they are written there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from models import images, tiny

from gradcam_kit import METHODS, GradCAM, Smooth, explain_all

ROOT = Path(__file__).parent.parent


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


def test_a_method_is_one_small_file(tmp_path, monkeypatch):
    (tmp_path / "positive_cam.py").write_text(EXAMPLES[0])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import positive_cam

        model, x = tiny().double(), images().double()
        explanation = METHODS["positive-cam"](model, "relu2").explain(x, 1)
        weights = model.fc.weight[1].clamp(min=0) / 64
        activations = model.relu2(model.stage2(model.relu1(model.stage1(x)))).detach()
        expected = (weights.detach()[None, :, None, None] * activations).sum(1)
        torch.testing.assert_close(explanation.saliency["relu2"], expected)
        squared = METHODS["positive-cam"](model, "relu2", power=2).explain(x, 1).saliency["relu2"]
        expected = (weights.detach()[None, :, None, None] ** 2 * activations).sum(1)
        torch.testing.assert_close(squared, expected)
        assert METHODS["positive-cam"] is positive_cam.PositiveCAM
        assert METHODS["positive-cam"].paper == "Positive-CAM: an example, not a paper."
    finally:
        METHODS.pop("positive-cam", None)
        sys.modules.pop("positive_cam", None)


def test_a_method_of_ones_own_project_is_a_method_like_all_others(tmp_path, monkeypatch):
    (tmp_path / "drop_cam.py").write_text(EXAMPLES[1])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        from drop_cam import DropCAM

        model, x = tiny().double(), images(2).double()
        found = DropCAM(model, "relu2").explain(x, [[0, 1], [2, 3]])
        activations = GradCAM(model, "relu2").explain(x, [[0, 1], [2, 3]])
        # Behind mean pooling a position counts with the head's weights, as in Grad-CAM.
        torch.testing.assert_close(found.saliency["relu2"], activations.saliency["relu2"])
        first, second = explain_all([DropCAM(model, "relu2"), GradCAM(model, "relu2")], x, 1)
        torch.testing.assert_close(first, second)
        assert Smooth(DropCAM(model, "relu2"), samples=2)(x).shape == (2, 16, 16)
        assert not torch.equal(DropCAM(model, "relu2", fill=1.0)(x, 1), first)
        assert DropCAM.paper.startswith("Drop-CAM: what the score loses")
    finally:
        METHODS.pop("drop-cam", None)
        sys.modules.pop("drop_cam", None)

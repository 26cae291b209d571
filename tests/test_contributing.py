"""The example of CONTRIBUTING.md works as it is written there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from models import images, tiny

from gradcam_kit import METHODS

ROOT = Path(__file__).parent.parent


def test_a_method_is_one_small_file(tmp_path, monkeypatch):
    source = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "positive_cam.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import positive_cam

        model, x = tiny().double(), images().double()
        explanation = METHODS["positive-cam"](model, "relu2").explain(x, 1)
        weights = model.fc.weight[1].clamp(min=0) / 64
        activations = model.relu2(model.stage2(model.relu1(model.stage1(x)))).detach()
        expected = (weights.detach()[None, :, None, None] * activations).sum(1)
        torch.testing.assert_close(explanation.saliency["relu2"], expected)
        assert METHODS["positive-cam"] is positive_cam.PositiveCAM
        assert METHODS["positive-cam"].paper == "Positive-CAM: an example, not a paper."
    finally:
        METHODS.pop("positive-cam", None)
        sys.modules.pop("positive_cam", None)

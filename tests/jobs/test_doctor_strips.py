"""The pictures of each layer on the doctor's page: values over the steps, and the largest value of each unit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from gradcam_kit.diagnostics.show.page import render_page
from gradcam_kit.jobs.work.observed import observed_training


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_steps_are_columns_and_silent_units_are_dark() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].bias[4:12] = -100.0
    batches = [(torch.randn(32, 8), torch.arange(32) % 4)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, report, strips = observed_training(model, batches, functional.cross_entropy, 5)
    assert set(strips) == {row.name for row in report.layers} == {"0", "1", "2"}
    assert ("dead", "1") in {(finding.kind, finding.layer) for finding in found}
    over_time, units = pixels(strips["1"].over_time), pixels(strips["1"].units)
    assert over_time.shape == (35, 5, 3)
    darkest = over_time.sum(2).min()
    assert (over_time[18:].sum(2) == darkest).all()  # nothing is negative behind a ReLU
    assert (over_time[17].sum(1) > darkest).all()  # and in each step some are zero
    assert units.shape == (1, 16, 3)
    dead = units[0].sum(1) == units[0].sum(1).min()
    assert dead[4:12].all()
    assert dead.sum() < 12
    assert strips["2"].units
    text = render_page(model="net", findings=found, report=report, strips=strips)
    assert text.count('class="over-time"') == 3
    assert text.count('class="units"') == 3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())

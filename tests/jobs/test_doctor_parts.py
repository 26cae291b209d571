"""Attention, recurrent layers and pyramids on the page of `doctor`, where a model has them."""

from __future__ import annotations

import re

import pytest
import torch
from models import TinyCNN, TinyViT
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit.diagnostics.show.page import render_page
from gradcam_kit.jobs.work.special_parts import SpecialParts, special_parts
from gradcam_kit.models import load_model


class Columns(nn.Module):
    """A convolution and an LSTM over its columns."""

    def __init__(self, forget: float = 0.0) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 8, 4, 4), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)
        nn.init.constant_(self.lstm.bias_ih_l0[8:16], forget)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.conv(x).mean(2).transpose(1, 2))[0][:, -1])


def images(n: int = 4, side: int = 16) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def parts(model: nn.Module, side: int = 16, *, detects: bool = False) -> SpecialParts:
    with unchanged(model):
        return special_parts(model, images(side=side), detects=detects)


def test_a_network_without_such_parts_has_no_section() -> None:
    assert parts(TinyCNN()) == SpecialParts()


def test_gates_are_shown_and_a_stuck_one_is_a_finding() -> None:
    torch.manual_seed(0)
    found = parts(Columns())
    assert [table.title for table in found.tables] == ["Recurrent layers"]
    assert [row[1] for row in found.tables[0].rows] == ["input", "forget", "cell", "output"]
    assert found.findings == []
    (finding,) = parts(Columns(20.0)).findings
    assert (finding.level, finding.kind, finding.layer) == ("warn", "stuck-gate", "lstm")


def test_heads_are_shown_as_numbers_and_as_maps() -> None:
    torch.manual_seed(0)
    found = parts(TinyViT())
    assert [table.title for table in found.tables] == ["Attention"]
    assert [row[0] for row in found.tables[0].rows] == ["blocks.0.attn", "blocks.1.attn"]
    assert all(0 < float(row[2]) <= 1 for row in found.tables[0].rows)
    assert [one.layer for one in found.maps] == ["blocks.0.attn", "blocks.1.attn"]
    assert [len(one.pngs) for one in found.maps] == [3, 3]
    page = render_page(model="vit", findings=found.findings, parts=found.tables, attention=found.maps)
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == ["Attention", "Where heads look"]
    assert page.count("<img") == 6
    assert page.count("blocks.0.attn") == 5  # the table, a caption, and what a screen reader says of three maps


def test_levels_of_a_detector_are_shown() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    found = parts(model.eval(), side=96, detects=True)
    assert [table.title for table in found.tables] == ["Levels of backbone"]
    assert [row[0] for row in found.tables[0].rows] == [str(i) for i in range(6)]


def test_the_transform_inside_of_a_detector_is_none_of_pictures(tmp_path, monkeypatch) -> None:
    source = (
        "from torchvision.models.detection import ssdlite320_mobilenet_v3_large as build\n"
        "def net(): return build(weights=None, weights_backbone=None, num_classes=3)\n"
    )
    (tmp_path / "a_detector.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert "carries no transform" in load_model("a_detector:net").transform_source

"""What work costs: counted from the operations that it makes."""

from __future__ import annotations

from pathlib import Path

import forked
import torch
from torch import nn

from gradcam_kit.meter import Meter

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def test_multiplications_of_convolutions_and_products_are_counted():
    images, conv, linear = torch.ones(2, 3, 8, 8), nn.Conv2d(3, 4, 3), nn.Linear(5, 7)
    with Meter(CPU) as meter:
        conv(images)
        assert meter.lap().flops == 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)
        linear(torch.ones(6, 5))
        assert meter.lap().flops == 2 * 6 * 5 * 7
        assert meter.lap().flops == 0


def test_peak_memory_counts_what_lives_at_once_and_neither_views_nor_changes_in_place():
    known = torch.zeros(1000)
    with Meter(CPU) as meter:
        first = known + 1
        second = first.view(10, 100).mul_(2)
        assert meter.lap().peak_bytes == 4000
        del first, second
        for _ in range(5):
            third = known * 2
            del third
        assert meter.lap().peak_bytes == 4000
        kept = [known + i for i in range(3)]
        assert meter.lap().peak_bytes == 12000
        assert len(kept) == 3


def test_the_backward_pass_counts_too():
    weight, images = torch.ones(4, 3, 3, 3, requires_grad=True), torch.ones(1, 3, 8, 8)
    with Meter(CPU) as meter:
        score = nn.functional.conv2d(images, weight).sum()
        forward = meter.lap().flops
        torch.autograd.grad(score, weight)
        assert meter.lap().flops == forward > 0


def test_metering_loads_no_compiler():
    code = (
        "import sys, torch; from gradcam_kit.meter import Meter\n"
        "with Meter(torch.device('cpu')): torch.ones(2) + 1\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert forked.run(code).stdout == "False\n"

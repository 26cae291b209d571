"""The examples of docs/inputs.md run as they are written, and give what their comments say."""

from __future__ import annotations

import re

import torch
from documents import DOCS, run_examples

PAGE = (DOCS / "inputs.md").read_text()


def test_the_examples_run_in_order_and_give_what_their_comments_say():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = run_examples(DOCS / "inputs.md")
    shapes = {"heatmaps": (2, 51, 26), "clip_maps": (2, 6, 64, 64), "tower_maps": (2, 32, 32)}
    shapes |= {"depth_maps": (2, 48, 48), "color_maps": (2, 32, 32), "tile_maps": (5, 32, 32)}
    for name, shape in shapes.items():
        assert names[name].shape == shape
        comment = re.search(rf"^{name} = .*# \(([\d, ]+)\)", PAGE, re.MULTILINE)
        assert comment
        assert comment[1] == ", ".join(map(str, shape))
    assert names["early"].layers == ("act#1",)
    assert names["chosen"].layers == ("act#2",)

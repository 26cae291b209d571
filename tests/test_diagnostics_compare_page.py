"""The examples of docs/diagnostics-compare.md run as they are written, and find what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from documents import DOCS, run_examples
from PIL import Image

PAGE = (DOCS / "diagnostics-compare.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"!\[[^\]]+\]\((.+?)\)", PAGE)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(tmp_path_factory.mktemp("page"))
        names = run_examples(DOCS / "diagnostics-compare.md")
        names["written"] = {path.name: path.stat().st_size for path in Path().iterdir()}
    return names


@pytest.mark.long
def test_models_and_data(names):
    assert names["alike"].cka.shape == (5, 5)
    assert names["alike"].findings == ()
    assert names["alike"].cka[0, 0] > 0.99 > 0.5 > names["alike"].cka[3, 3]
    assert (names["collapsed"].kind, names["collapsed"].layer) == ("collapsed", "layer3.conv2")
    assert [finding.kind for finding in names["shifted"].findings] == ["shift"]
    assert names["same"].findings == ()


@pytest.mark.long
def test_units_mistakes_and_embeddings(names):
    assert all(len(names["taylor"][name]) == len(names["truth"][name]) for name in ("layer3", "layer4"))
    assert names["taylor"].agreement(names["truth"])["layer4"] > 0.3
    assert names["mistakes"].wrong > 5
    assert names["projected"].silhouette > 0
    assert len(names["carried"].levels) == 5
    assert names["carried"].findings == ()


@pytest.mark.long
def test_pictures_are_there_small_and_those_of_the_code(names):
    assert len(PICTURES) == 6
    for name in PICTURES:
        assert (DOCS / name).stat().st_size < 60_000
        with Image.open(DOCS / name) as picture:
            assert picture.format == "PNG"
    assert {*PICTURES} - {*names["written"]} == {"analyze-mistakes.png"}
    assert names["written"]["mistakes.html"] > 10_000


def test_no_example_is_longer_than_a_screen():
    assert all(block.count("\n") <= 13 for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))

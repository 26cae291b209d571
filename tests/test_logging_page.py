"""The examples of docs/diagnostics-logging.md run as they are written, and leave what the page says."""

from __future__ import annotations

import json

import pytest
import torch
from documents import DOCS, run_examples
from PIL import Image

PAGE = (DOCS / "diagnostics-logging.md").read_text()


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The names that the examples leave, and their folder."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        names = run_examples(DOCS / "diagnostics-logging.md")
    return names, folder


def test_files_are_where_the_page_says(left):
    names, folder = left
    assert {path.name for path in folder.iterdir()} == {"logs", "tables", "film.gif"}
    assert {path.name for path in (folder / "logs").iterdir()} == {"diagnostics.jsonl", "diagnostics.html", "images"}
    assert "0/mean" in (folder / "tables" / "scalars.csv").read_text()
    lines = [json.loads(line) for line in (folder / "logs" / "diagnostics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if line["name"] == "0/mean"} == {6, 12, 18}
    assert [one for one in names["diagnostics"].report().findings if one.level == "bad"] == []


def test_the_map_settles_on_the_squares(left):
    names, folder = left
    assert names["film"].steps == [1, 5, 9, 13, 17, 21]
    with Image.open(folder / "film.gif") as film:
        assert film.n_frames == 6
    maps = names["film"].cam(names["images"][:3], names["labels"][:3])
    for image, label, heatmap in zip(names["images"], names["labels"], maps, strict=False):
        square = image[label] > 1.2
        assert heatmap[square].mean() > 2 * heatmap[~square].mean()


def test_two_towers(left):
    pair = left[0]["pair"]
    assert (pair.heatmaps.shape, pair.tokens.shape) == ((2, 32, 32), (2, 3))


def test_the_picture_of_the_page_is_small_and_a_film():
    path = DOCS / "film.gif"
    assert path.stat().st_size < 100_000
    with Image.open(path) as film:
        assert film.n_frames >= 6


def test_no_line_is_longer_than_a_screen():
    assert max(map(len, PAGE.splitlines())) <= 130

"""What compare() shows is whole, escaped and in place: pages, sheets, figures and files."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradcam_kit import GradCAM, compare
from gradcam_kit.demo import HELD_OUT, draw
from gradcam_kit.errors import PictureError


@pytest.mark.parametrize("positions", [(40,), (6, 12, 12)])
def test_signals_and_volumes_can_be_shown(positions):
    dims = len(positions)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 4, 3), nn.ReLU(), getattr(nn, f"AdaptiveAvgPool{dims}d")(1), nn.Flatten())
    found = compare(model, torch.randn(2, 2, *positions), ["grad-cam", "eigen-cam"], "0")
    assert found.heatmaps["grad-cam"].shape == (2, *positions)
    assert found._repr_html_().count("data:image/jpeg") == 2 * 3
    assert len(found.plot().axes) == 6


class Reader(HTMLParser):
    """Collects the tags, and complains about those that load something."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_page_needs_nothing_from_outside_and_escapes_names(model, batch):
    evil = '<script>alert("x")</script>'
    found = compare(
        model,
        batch.images,
        {evil: GradCAM(model)},
        names=[evil] * 3,
        class_names=[evil] * 8,
        metrics="average-drop",
    )
    page = Reader()
    page.feed(found._repr_html_())
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    assert evil in page.text
    heatmaps = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    pictures = [re.search(r"url\((.*?)\)", attributes["style"])[1] for tag, attributes in page.tags if tag == "section"]
    assert (len(pictures), len(heatmaps)) == (3, 3)
    for source in pictures + heatmaps:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (128, 128)
    [slider] = [attributes for tag, attributes in page.tags if tag == "input"]
    assert slider["type"] == "range"
    assert "http" not in found._repr_html_()


def test_long_comparisons_are_cut_in_notebooks_and_whole_in_files(model, batch, tmp_path):
    images = batch.images.repeat(7, 1, 1, 1)
    found = compare(model, images, "grad-cam", cost=False)
    assert "and 5 more images" in found._repr_html_()
    assert found._repr_html_().count("<section") == 16
    found.save(tmp_path / "all.html")
    assert (tmp_path / "all.html").read_text().count("<section") == 21


def test_pictures_have_the_models_normalization_undone(model, batch):
    found = compare(model, batch.images, "grad-cam", cost=False)
    original = np.stack([draw(HELD_OUT + i).picture for i in range(3)])
    assert np.abs(np.stack(found.pictures).astype(int) - original).max() <= 1


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_sheet_and_figure_wrap_many_methods_into_rows(model, batch, tmp_path):
    found = compare(model, batch.images[:2], ["grad-cam"] * 10, cost=False)
    found.save(tmp_path / "sheet.png", columns=6)
    narrow = size(tmp_path / "sheet.png")
    found.save(tmp_path / "wide.png", columns=11)
    wide = size(tmp_path / "wide.png")
    assert narrow[0] < 0.65 * wide[0]
    assert narrow[1] > 1.9 * wide[1]
    figure = found.plot(columns=6)
    shown = [axis for axis in figure.axes if axis.images]
    assert (len(figure.axes), len(shown)) == (2 * 2 * 6, 2 * 11)
    assert shown[0].get_title().startswith("image 0")
    assert [axis.get_title() for axis in shown[1:11]] == list(found.heatmaps)


@pytest.mark.parametrize("suffix", [".html", ".csv", ".png", ".jpg", ".svg"])
def test_save_writes_by_ending(model, batch, tmp_path, suffix):
    found = compare(model, batch.images, ["grad-cam", "eigen-cam"], cost=False)
    path = tmp_path / f"found{suffix}"
    found.save(path)
    begins = {".html": b"<!doctype", ".csv": b"image,method", ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".svg": b"<?xml"}
    assert path.read_bytes().startswith(begins[suffix])


def test_a_figure_stays_out_of_the_way_of_others(model, batch):
    from matplotlib import pyplot

    mine = pyplot.figure()
    compare(model, batch.images, "grad-cam", cost=False).plot()
    assert pyplot.get_fignums() == [mine.number]
    pyplot.close(mine)


def test_an_unknown_ending_is_an_error(model, batch, tmp_path):
    with pytest.raises(PictureError, match="no format for the suffix"):
        compare(model, batch.images, "grad-cam", cost=False).save(tmp_path / "x.what")

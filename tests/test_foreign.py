"""Habits from other CAM libraries: each gets an error that says what it is here, or works."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import gradcam_kit
import gradcam_kit.targets
from gradcam_kit import METHODS, GradCAM, ScoreCAM, read_picture
from gradcam_kit.demo import sample_pictures
from gradcam_kit.errors import InputError, OptionError, ShapeError, UnknownNameError
from gradcam_kit.foreign import KEYWORDS, NAMES
from gradcam_kit.metrics import METRICS
from gradcam_kit.models import load_model
from gradcam_kit.render import colormap_table


@pytest.fixture(scope="module")
def loaded():
    return load_model("demo")


@pytest.fixture(scope="module")
def images(loaded):
    return torch.stack([loaded.transform(sample.picture) for sample in sample_pictures()[:2]])


@pytest.mark.parametrize("keyword", ["use_cuda", "target_layer", "layer", "reshape_transform", "input_shape"])
@pytest.mark.parametrize("method", [GradCAM, ScoreCAM])
def test_keywords_of_a_constructor(method, loaded, keyword: str) -> None:
    with pytest.raises(InputError, match=f"does not accept the keyword '{keyword}'; in gradcam_kit: "):
        method(loaded.model, **{keyword: "layer4"})


@pytest.mark.parametrize("keyword", ["input_tensor", "aug_smooth", "eigen_smooth", "class_idx", "target_category"])
def test_keywords_of_a_call(loaded, images, keyword: str) -> None:
    for call in (GradCAM(loaded.model), GradCAM(loaded.model).explain):
        with pytest.raises(InputError, match=f"does not accept the keyword '{keyword}'; in gradcam_kit: "):
            call(**{keyword: images}) if keyword == "input_tensor" else call(images, **{keyword: 1})


def test_a_keyword_that_the_model_takes_is_the_model_s() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x, layer=0.0):
            return self.head(self.conv(x).relu().mean((2, 3))) + layer

    found = GradCAM(Switched(), "conv").explain(torch.rand(1, 3, 8, 8), targets=0, layer=5.0)
    assert float(found.scores[0]) > 3


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names(name: str) -> None:
    for module in (gradcam_kit, gradcam_kit.targets):
        with pytest.raises(ImportError, match=f"^{module.__name__} has no {name}; in gradcam_kit: "):
            getattr(module, name)


def test_an_import_by_name_says_what_it_is_here_and_other_names_are_missing() -> None:
    with pytest.raises(ImportError, match="in gradcam_kit: a plain class index"):
        from gradcam_kit.targets import ClassifierOutputTarget  # noqa: F401
    for module in (gradcam_kit, gradcam_kit.targets):
        assert not hasattr(module, "NoSuchTarget")


@pytest.mark.parametrize(("keyword", "said"), [("use_rgb", "not needed"), ("image_weight", "alpha")])
def test_keywords_of_an_overlay(keyword: str, said: str) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    for call, one in ((gradcam_kit.overlay, picture), (gradcam_kit.overlays, picture[None])):
        with pytest.raises(
            InputError, match=rf"{call.__name__}\(\) does not accept the keyword '{keyword}'; in gradcam_kit: {said}"
        ):
            call(one, np.zeros(one.shape[:-1]), **{keyword: 0.5})


def test_a_number_of_a_colormap_is_named() -> None:
    with pytest.raises(UnknownNameError, match=f"no colormap {cv2.COLORMAP_JET}; in gradcam_kit: 'jet'"):
        inspect.unwrap(colormap_table)(cv2.COLORMAP_JET)  # within tests the type of an argument is checked first


def test_what_the_tables_recommend_exists() -> None:
    import re

    for text in [*KEYWORDS.values(), *NAMES.values()]:
        for module, name in re.findall(r"(gradcam_kit(?:\.\w+)*)\.(\w+)", text):
            assert hasattr(__import__(module, fromlist=[name]), name), text
        for name in re.findall(r"(?<![\w.])([A-Z]\w+)\(", text):
            assert hasattr(gradcam_kit, name), text
        assert set(re.findall(r'METRICS\["([\w-]+)"\]', text)) <= METRICS.keys()
        whole = re.fullmatch(r"[A-Z]\w+", text)
        assert whole is None or hasattr(gradcam_kit, text)
    assert not NAMES.keys() & set(gradcam_kit.__all__)


@pytest.mark.parametrize("page", ["coming-from-pytorch-grad-cam", "coming-from-torch-cam"])
def test_names_of_the_pages_are_in_the_table_or_are_ours(page: str) -> None:
    import re

    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.MULTILINE)
    assert rows
    for theirs, ours in rows:
        for name in re.findall(r"`(\w+)", theirs):
            is_same = "same name" in ours and name in gradcam_kit.__all__
            assert is_same or name in NAMES or hasattr(gradcam_kit, name), name


def test_names_of_methods_and_models() -> None:
    with pytest.raises(UnknownNameError, match="no method 'GradCAM'; in gradcam_kit: 'grad-cam'"):
        METHODS["GradCAM"]
    with pytest.raises(UnknownNameError, match=r"in gradcam_kit: 'grad-cam\+\+'"):
        METHODS["GradCAMPlusPlus"]
    with pytest.raises(UnknownNameError, match="did you mean 'torchvision:resnet50'"):
        load_model("resnet50")


def test_a_with_block_is_the_object(loaded, images) -> None:
    with GradCAM(loaded.model) as cam:
        heatmaps = cam(images)
    assert torch.equal(heatmaps, cam(images))


def test_an_explanation_becomes_pictures(loaded, images, tmp_path: Path, caplog) -> None:
    pictures = [sample.picture for sample in sample_pictures()[:2]]
    found = GradCAM(loaded.model).explain(images, targets=[[0, 1], [2, 3]])
    shown = found.overlay(Image.fromarray(pictures[1]), image=1, target=1, transform=loaded.transform)
    assert np.array_equal(shown, gradcam_kit.overlay(pictures[1], found.heatmaps[1, 1], box=(0, 0, 128, 128)))
    shown.save(tmp_path / "one.png")
    assert np.array_equal(read_picture(tmp_path / "one.png"), shown)
    found.save(tmp_path / "sheet.png", pictures)
    with_pictures, alone = read_picture(tmp_path / "sheet.png"), tmp_path / "alone.png"
    found.save(alone)
    assert with_pictures.shape[1] > read_picture(alone).shape[1]
    assert len(found.plot(pictures).axes) == 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        found.overlay(np.zeros((50, 100, 3), np.uint8))
    assert "center crop; pass transform= or box=" in caplog.text
    with pytest.raises(
        InputError, match="Explanation does not accept the keyword 'image_weight'; in gradcam_kit: alpha"
    ):
        found.overlay(pictures[0], image_weight=0.5)
    with pytest.raises(OptionError, match="target is 2; expected an index from -2 to 1"):
        found.overlay(pictures[0], target=2)
    with pytest.raises(ShapeError, match="1 pictures and 2 explained images"):
        found.save(alone, pictures[:1])


def test_a_picture_of_pil_is_prepared_like_its_array(loaded) -> None:
    picture = sample_pictures()[0].picture
    assert torch.equal(loaded.transform(Image.fromarray(picture)), loaded.transform(picture))

"""HeatmapLogger: the training does not notice it, and its films can be played."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradcam_kit import GradCAM, HeatmapLogger
from gradcam_kit.comparison.moving import write_film
from gradcam_kit.diagnostics import JsonWriter
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, OptionError, ShapeError


def network() -> nn.Sequential:
    torch.manual_seed(3)
    front = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.3)
    return nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def trained(film: bool, folder: Path) -> tuple[list[float], nn.Module, dict, torch.Tensor, HeatmapLogger | None]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    logger = None
    if film:
        cam = GradCAM(model, "0")
        logger = HeatmapLogger(cam, torch.rand(2, 3, 12, 12), every=4, writer=JsonWriter(folder), features=("0", "4"))
    torch.manual_seed(4)
    losses = []
    for _ in range(9):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.rand(8, 3, 12, 12)), torch.randint(0, 3, (8,)))
        loss.backward()
        gradients = [own.grad.clone() for own in model.parameters()]
        if logger is not None:
            logger.step()
        assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters(), strict=True))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, model, optimizer.state_dict(), torch.get_rng_state(), logger


def test_the_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    plain, filmed = trained(False, tmp_path), trained(True, tmp_path)
    assert plain[0] == filmed[0]
    for name, own in plain[1].state_dict().items():
        assert torch.equal(own, filmed[1].state_dict()[name]), name
    for own, other in zip(plain[2]["state"].values(), filmed[2]["state"].values(), strict=True):
        assert all(torch.equal(own[key], other[key]) for key in own)
    assert torch.equal(plain[3], filmed[3])
    assert all(own.training for own in filmed[1].modules())
    assert filmed[4] is not None
    assert filmed[4].steps == [1, 5, 9]
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert len(names) == 9
    assert {name.rpartition("-")[2] for name in names} == {f"{step:08d}.png" for step in (1, 5, 9)}


def test_films_can_be_played(tmp_path: Path) -> None:
    logger = trained(True, tmp_path)[4]
    assert logger is not None
    with Image.open(logger.save(tmp_path / "film.gif", fps=4)) as film:
        assert (film.n_frames, film.info["duration"]) == (3, 250)
        assert film.size == logger.frames[0].shape[1::-1]
        first = np.array(film.convert("RGB")).astype(int)
    wanted = logger.frames[0].astype(int)
    swapped = wanted[..., ::-1]
    assert abs(first - wanted).mean() < 9  # in 256 colors
    assert abs(first - wanted).mean() < abs(first - swapped).mean() / 2  # RGB, not BGR
    video = cv2.VideoCapture(str(logger.save(tmp_path / "film.mp4")))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    video.release()
    assert len(frames) == 3
    height, width = logger.frames[0].shape[:2]
    assert abs(frames[0][:height, :width].astype(int) - logger.frames[0].astype(int)).mean() < 12
    with pytest.raises(OptionError, match=r"ends in \.gif or \.mp4"):
        logger.save(tmp_path / "film.avi")
    with pytest.raises(OptionError, match="fps is 0"):
        logger.save(tmp_path / "film.gif", fps=0)


def test_frames_of_other_sizes_fit_the_first(tmp_path: Path) -> None:
    frames = [np.zeros((9, 11, 3), np.uint8), np.zeros((12, 8, 3), np.uint8)]
    for name in ("a.gif", "a.mp4"):
        assert write_film(tmp_path / name, frames, 5).stat().st_size > 100


def test_memory_stays_constant() -> None:
    logger = HeatmapLogger(GradCAM(network(), "0"), torch.rand(1, 3, 8, 8), every=1, most_frames=4)
    for _ in range(9):
        logger.step()
    assert logger.steps == [1, 5, 9]
    assert len(logger.frames) == 3


def test_a_model_that_breaks_costs_a_frame_and_not_the_training(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    logger = HeatmapLogger(GradCAM(model, "0"), torch.rand(1, 3, 8, 8), every=1)
    logger.step()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with caplog.at_level(logging.WARNING, "gradcam_kit"):
        logger.step()
    assert logger.steps == [1]
    assert [record.getMessage()[:22] for record in caplog.records] == ["no heatmaps at step 2:"]
    with pytest.raises(ValueError, match="NaN"):  # what never worked is told at once
        HeatmapLogger(GradCAM(model, "0"), torch.rand(1, 3, 8, 8)).step()


def test_pictures_below_the_heatmaps() -> None:
    model, pictures = network(), np.full((2, 20, 20, 3), 200, np.uint8)
    logger = HeatmapLogger(GradCAM(model, "0"), torch.rand(2, 3, 8, 8), pictures=pictures, targets=1)
    logger.step()
    height = logger.frames[0].shape[0]
    assert (logger.frames[0][: height // 2] == 200).all(2).mean() > 0.3
    images = torch.rand(1, 3, 8, 8)
    logger = HeatmapLogger(GradCAM(model, "0"), images)
    images.zero_()  # a copy is kept
    assert logger._images.max() > 0


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    model, images = network(), torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match="cam is a Sequential; expected a method"):
        HeatmapLogger(model, images)
    with pytest.raises(OptionError, match="every is 0"):
        HeatmapLogger(GradCAM(model), images, every=0)
    with pytest.raises(LayerNotFoundError, match="no layer 'layer4'"):
        HeatmapLogger(GradCAM(model), images, features="layer4")
    with pytest.raises(ShapeError, match="2 pictures for 1 images"):
        HeatmapLogger(GradCAM(model), images, pictures=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(CaptureError, match="there is no frame yet"):
        HeatmapLogger(GradCAM(model), images).save(tmp_path / "film.gif")

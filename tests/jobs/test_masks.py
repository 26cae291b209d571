"""Masks of objects in a folder: read, placed where the model sees them, and measured with."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import disk
import numpy as np
import pytest
import torch
from commands import cli
from evaluations import asking, rows_of, run_demo, write_samples
from PIL import Image

from gradcam_kit import GradCAM
from gradcam_kit.demo import sample_pictures
from gradcam_kit.errors import InputError, OptionError, PictureError
from gradcam_kit.jobs import load_run
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.metrics import BASELINES, METRICS, MetricInput
from gradcam_kit.models import load_model
from gradcam_kit.transforms import CallableTransform, PictureTransform


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def write_masks(count: int = 3, folder: str = "masks") -> None:
    Path(folder).mkdir(parents=True)
    for i, sample in enumerate(sample_pictures()[:count]):
        Image.fromarray(sample.mask).save(f"{folder}/{i}.png")


@pytest.mark.parametrize(
    "transform",
    [
        PictureTransform((40, 56), 64),
        PictureTransform((96, 96), 60),
        PictureTransform((50, 30)),
        PictureTransform((64, 64), 64),
    ],
    ids=["cropped", "padded", "squeezed", "shorter side"],
)
def test_a_mask_lies_where_the_model_sees_its_picture(transform: PictureTransform) -> None:
    rows, columns = np.mgrid[:90, :120]
    mask = (rows - 40) ** 2 + (columns - 70) ** 2 < 30**2
    Path("masks").mkdir()
    Image.fromarray(mask).save("masks/a.png")
    found = Masks("masks").of("a.jpg", (90, 120), transform.box(90, 120), transform.size)
    shown = transform.prepare(np.where(mask, 255, 0).astype(np.uint8)[..., None].repeat(3, 2))[..., 0]
    assert found.shape == transform.size
    assert found[shown > 250].all()
    assert not found[shown < 5].any()  # also what lies outside of the picture
    assert found.any()


def test_whatever_is_not_0_is_the_object_and_opacity_is_none() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2:5] = 3
    wide = np.stack([mask] * 3, -1)
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0, 0, 0, *[9, 9, 9] * 255])
    inverted = Image.fromarray(mask, "P")
    inverted.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    Path("m/deep").mkdir(parents=True)
    for name, image in {
        "gray.png": Image.fromarray(mask),
        "bits.png": Image.fromarray(mask > 0),
        "deep/instances.png": Image.fromarray(mask.astype(np.uint16)),
        "many.tif": Image.fromarray(mask.astype(np.int32)),
        "palette.png": palette,
        "color.bmp": Image.fromarray(wide * np.array([0, 0, 1], np.uint8)),
        "opaque.png": Image.fromarray(np.concatenate([wide, np.full((4, 6, 1), 255, np.uint8)], -1)),
        "gray.and.opaque.png": Image.fromarray(np.stack([mask, np.full_like(mask, 255)], -1)),
    }.items():
        image.save(f"m/{name}")
        found = Masks("m").of(re.sub(r"[.]\w+$", ".jpg", name), (4, 6), (0.0, 0.0, 6.0, 4.0), (4, 6))
        np.testing.assert_array_equal(found, mask > 0, name)

    inverted.save("m/inverted.png")
    with pytest.raises(PictureError, match="save it as a gray image"):
        Masks("m").of("inverted.png", (4, 6), (0.0, 0.0, 6.0, 4.0), (4, 6))


def test_a_mask_that_cannot_be_used_says_why() -> None:
    Path("masks").mkdir()
    Path("masks/bad.png").write_bytes(b"no picture")
    Image.fromarray(np.ones((4, 5), np.uint8)).save("masks/small.png")
    Image.fromarray(np.ones((4, 5), np.uint8)).save("masks/blurred.jpg")
    for name, says in (
        ("bad.png", "cannot read the mask bad.png"),
        ("small.png", "the mask is 5 x 4, but its picture is 6 x 4"),
        ("blurred.jpg", "no mask blurred.png or blurred.tif or .* in 'masks'"),
    ):
        with pytest.raises(PictureError, match=says):
            Masks("masks").of(name, (4, 6), (0.0, 0.0, 6.0, 4.0), (4, 6))
    with pytest.raises(InputError, match="the folder of masks 'nowhere' does not exist"):
        Masks("nowhere")
    with pytest.raises(OptionError, match="method box"):
        Masks("masks").check(CallableTransform(torch.from_numpy))
    Masks("masks").check(PictureTransform())


def test_a_run_is_measured_with_masks() -> None:
    """As by the library; a picture without a mask keeps its other numbers."""
    write_samples()
    write_masks(2)
    run_demo("out")
    asked = asking("average-drop", "pointing-game", "energy-pointing-game")
    status, said, problems = cli("evaluate", "out", "--masks", "masks", *asked)
    assert (status, "2 of 3 pictures measured" in said) == (1, True)
    assert "failed: 2.png: there is no mask 2.png or" in problems
    assert f"masks {Path('masks').resolve()}" in said  # among the settings of a number
    assert cli("evaluate", "out", "--no-baselines", *asking("average-drop"))[0] == 0  # has them all
    rows = rows_of("out/metrics")
    assert {row["method"] for row in rows} > set(BASELINES)
    for row in rows:
        with_mask = row["path"] != "2.png"
        assert row["average_drop_status"] in ("ok", "degenerate_map")  # that of a constant baseline
        assert (row["pointing_game_status"] == "error") is not with_mask
        assert (row["energy_pointing_game_status"] == "error") is not with_mask
    found = load_run("out")
    places = [i for i in range(len(found)) if found[i]["path"] != "2.png"]
    own = {(row["path"], row["method"], row["rank"]): row["energy_pointing_game"] for row in rows}
    masks = [sample_pictures()[int(found[i]["path"][0])].mask for i in places]
    maps = torch.from_numpy(np.stack([found.heatmap(i) for i in places]))
    expected = METRICS["energy-pointing-game"](
        MetricInput(maps, torch.zeros(len(maps), 3, 128, 128), masks=torch.from_numpy(np.stack(masks)))
    ).values
    keys = [(found[i]["path"], found[i]["method"], found[i]["rank"]) for i in places]
    np.testing.assert_allclose([own[key] for key in keys], expected, rtol=1e-3)
    assert len(set(expected.tolist())) > 2

    shutil.copy("masks/1.png", "masks/2.png")  # of the same size
    status, said, _ = cli("evaluate", "out", "--masks", "masks", *asked)
    assert (status, "3 of 3 pictures measured" in said) == (0, True)
    assert {row["error"] for row in rows_of("out/metrics")} == {None}
    write_masks(3, "more")
    status, said, _ = cli(
        "evaluate", "out", "--no-baselines", "--masks", "more", *asked
    )  # others, so it is measured again
    assert (status, "3 of 3 pictures measured" in said) == (0, True)
    assert "error" not in {row["pointing_game_status"] for row in rows_of("out/metrics")}
    again = ("evaluate", "out", "--no-baselines", "--masks", "more")
    assert "(3 of them before)" in cli(*again, *asked)[1]
    assert cli(*again, "--overwrite", *asking("pointing-game"))[0] == 0
    assert all(row["average_drop_status"] for row in rows_of("out/metrics"))  # what was not asked for stays


def test_masks_of_other_pictures_are_a_wrong_request() -> None:
    write_samples()
    run_demo("out")
    Path("masks").mkdir()
    status, _, problem = cli("evaluate", "out", "--masks", "masks", *asking("pointing-game"))
    assert (status, "'masks' has no mask for the first pictures (3 checked)" in problem) == (2, True)
    assert cli("evaluate", "out", "--masks", "masks", *asking("entropy"))[0] == 0  # which asks for none
    compare = ("compare", "pictures", "--model", "demo", "--out", "rows.csv")
    for command in (("evaluate", "out"), compare):
        status, _, problem = cli(*command, "--masks", "pictures", *asking("pointing-game"))
        assert (status, "'pictures' is the folder of the pictures" in problem) == (2, True)


def test_pictures_that_are_named_alone_have_the_masks_of_their_folders() -> None:
    write_samples()
    write_masks(2, "masks/pictures")
    options = ("--model", "demo", "--method", "grad-cam", "--masks", "masks", "--overwrite", "--out", "rows.csv")
    for where in ("pictures/", f"{Path.cwd()}/pictures/"):
        names = [f"{where}{i}.png" for i in range(3)]
        _, said, problems = cli("compare", *names, *options, *asking("energy-pointing-game"))
        assert "2 of 3 pictures explained" in said
        assert "there is no mask 2.png" in problems
    Path("masks/0.png").write_text("the nearest one, and damaged")
    assert "cannot read the mask 0.png" in cli("compare", "pictures/0.png", *options, *asking("iou"))[2]


def test_no_picture_gets_the_mask_of_another() -> None:
    """Whose name is the end of its own: what is missing stays missing."""
    write_samples()
    write_masks()
    Path("pictures/a").mkdir()
    Path("pictures/0.png").rename("pictures/a/0.png")
    options = ("--model", "demo", "--method", "grad-cam", "--masks", "masks", "--out", "rows.csv")
    _, said, problems = cli("compare", "pictures", *options, *asking("energy-pointing-game"))
    assert "2 of 3 pictures explained" in said
    assert "there is no mask a/0.png" in problems


def test_methods_side_by_side_with_masks() -> None:
    write_samples()
    write_masks(2)
    options = ("--model", "demo", "--out", "rows.csv", "--method", "grad-cam", "--masks", "masks")
    status, said, problems = cli("compare", "pictures", *options, *asking("energy-pointing-game"))
    assert (status, "2 of 3 pictures explained" in said) == (1, True)
    assert "there is no mask 2.png" in problems
    with Path("rows.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"].startswith("grad-cam")]
    loaded, samples = load_model("demo"), sample_pictures()[:2]
    images = torch.stack([loaded.transform(sample.picture) for sample in samples])
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]))
    expected = METRICS["energy-pointing-game"](MetricInput(GradCAM(loaded.model)(images), images, masks=masks)).values
    assert [float(row["energy-pointing-game"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-3)
    assert 0.1 < float(expected.min()) < float(expected.max()) < 1

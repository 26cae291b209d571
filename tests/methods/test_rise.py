"""RISE and D-RISE: masks, draws, memory and seeds; D-RISE against its transcription on small detectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from cases import MINI, SMALL, assert_same
from models import build, images
from networks import blocks
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import DRISE, RISE
from gradcam_kit.draws import checksums, uniform
from gradcam_kit.errors import OptionError, TargetError
from gradcam_kit.methods.arithmetic.random_masks import random_masks
from gradcam_kit.targets import DetectionTarget, Negative

INPUT = images(2, size=(12, 10)).double()
BOX = [2.0, 1.0, 8.0, 9.0]


def test_masks_belong_to_their_number_image_and_seed() -> None:
    numbers, identities = torch.arange(40), checksums(INPUT).repeat(20)
    whole = random_masks(numbers, identities, (12, 10), 4, 0.5, 7)
    parts = [random_masks(numbers[i::2], identities[i::2], (12, 10), 4, 0.5, 7) for i in (0, 1)]
    assert torch.equal(whole, torch.stack(parts, 1).flatten(0, 1))
    assert not torch.equal(whole[0], random_masks(numbers[:1], identities[1:2], (12, 10), 4, 0.5, 7)[0])
    assert not torch.equal(whole, random_masks(numbers, identities, (12, 10), 4, 0.5, 8))


@pytest.mark.parametrize("visible", [0.2, 0.5, 0.9])
def test_masks_show_as_much_as_they_say_everywhere(visible: float) -> None:
    masks = random_masks(torch.arange(4000), torch.zeros(4000).long(), (14, 21), 5, visible, 0)
    assert_close(masks.mean(0), torch.full((14, 21), visible), rtol=0, atol=0.04)
    assert float(masks.amin()) >= 0
    assert float(masks.amax()) <= 1


def test_a_mask_by_hand() -> None:
    # Two cells over four positions: C = 2, enlarged to 6, and the first cell covers less the further it is shifted.
    ones = ref.rise_mask([0.0, 1.0, 0.0], (4,), 2, 0.5)
    np.testing.assert_allclose(ones, [1, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(ref.rise_mask([0.0, 1.0, 0.6], (4,), 2, 0.5), [1, 2 / 3, 1 / 3, 0])


def test_the_map_finds_what_alone_decides() -> None:
    model = build(lambda m, x: m.head(x[:, :, 6:, 5:].mean((2, 3))), head=nn.Linear(3, 2)).double()
    bright = INPUT.abs() + 1
    heatmaps = RISE(model, masks=400, cells=4)(bright, int(model(bright)[0].argmax()))
    there = torch.zeros(12, 10, dtype=torch.bool)
    there[6:, 5:] = True
    assert (heatmaps[:, there].mean(1) > 1.5 * heatmaps[:, ~there].mean(1)).all()


def test_options_change_the_map_and_the_number_of_masks_only_adds_to_it() -> None:
    case = MINI[0]
    few = RISE(case.model, masks=10).explain(case.images, case.targets).saliency["<input>"]
    more = RISE(case.model, masks=11, batch_size=3).explain(case.images, case.targets).saliency["<input>"]
    last = 11 * more - 10 * few  # what the eleventh mask adds
    drawn = uniform((7 * 7 + 2,), checksums(case.images), 0, 10)
    for sample in range(2):
        mask = ref.rise_mask(drawn[sample].double().numpy(), tuple(case.size), 7, 0.5)
        assert float((last[sample].abs() > 1e-9).double().sub(torch.from_numpy(mask > 0).double()).abs().max()) == 0


def test_rows_in_one_pass_do_not_grow_with_the_number_of_masks() -> None:
    seen: list[int] = []
    model = blocks()
    handle = model.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    RISE(model, masks=100, batch_size=8)(INPUT[:, :3])
    handle.remove()
    assert max(seen) <= 8
    assert sum(seen) == 2 * 100 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 0}, "masks is 0; expected a positive int"),
        ({"cells": 0}, "cells is 0"),
        ({"visible": 1.0}, "visible is 1.0; expected a probability between 0 and 1"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RISE(blocks(), **options)


# D-RISE


def read_boxes(m: Any, x: Tensor) -> list[dict[str, Tensor]]:
    """Two boxes that follow the image, with probabilities; dark images have the second one alone."""
    found = []
    for scores, own, image in zip(m.head(m.layer(x).mean((2, 3))), m.classes(x.mean((2, 3))), x, strict=True):
        boxes = torch.tensor([BOX, [1.0, 0.0, 7.0, 8.0]]).double() + own[:1].detach()
        shares = torch.stack([own, own.flip(0)]).softmax(1)
        kept = slice(0 if image.mean() > 0 else 1, None)
        one = {"boxes": boxes, "scores": scores.sigmoid(), "labels": shares.argmax(1), "probabilities": shares}
        found.append({key: value[kept] for key, value in one.items()})
    return found


@cache
def detector() -> nn.Module:
    return build(read_boxes, layer=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 2), classes=nn.Linear(3, 3)).double()


def rows_of(detections: dict[str, Tensor], queries: bool = False) -> list[dict[str, Any]]:
    found = []
    for place in range(len(detections["boxes"])):
        probabilities = detections["probabilities"][place].detach().numpy()
        objectness = 1.0 if queries else float(detections["scores"][place].detach())
        box = detections["boxes"][place].detach().tolist()
        found.append({"box": box, "probabilities": probabilities, "objectness": objectness})
    return found


def expected_map(model: nn.Module, image: Tensor, target: dict[str, Any], masks: int, cells: int) -> Any:
    [identity] = checksums(image[None])
    drawn = uniform((cells**2 + 2,), identity.expand(masks), 0, torch.arange(masks)).double()
    rows = [ref.rise_mask(row.numpy(), tuple(image.shape[1:]), cells, 0.5) for row in drawn]

    def similarity(masked: Any) -> float:
        with torch.no_grad():
            return ref.detection_similarity(target, rows_of(model(torch.as_tensor(masked)[None])[0]))

    return ref.rise(image, similarity, rows, 0.5)


def test_d_rise_equals_its_transcription() -> None:
    model, bright = detector(), INPUT + 0.5
    with torch.no_grad():
        clean = model(bright)
    targets = DetectionTarget.of(clean, image=1, score_above=0.0)
    assert len(targets) == 2
    for target in targets:
        found = DRISE(model, masks=30, cells=4, batch_size=7).explain(bright[1:], target)
        rows = rows_of(clean[1])
        near = [ref.intersection_over_union(row["box"], target.boxes.tolist()) for row in rows]
        own = rows[int(np.argmax(near))] | {"box": target.boxes.tolist()}
        expected = expected_map(model, bright[1], own, 30, 4)
        assert_same(found.saliency["<input>"], expected[None], 1e-6)  # boxes of a target are float32 at least
        assert_close(found.scores, target(model(bright[1:])).detach())


def test_similarity_in_every_form() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])
    labeled = [{"boxes": boxes, "scores": torch.tensor([0.8, 0.9]), "labels": torch.tensor([1, 2])}]
    similarity = DetectionTarget(boxes[0], 1).settle(labeled).similarity(labeled)
    assert_close(similarity(labeled), torch.tensor([0.8]))
    assert_close(similarity([{**labeled[0], "labels": torch.tensor([2, 1])}]), torch.tensor([0.45]))  # 0.5 * 0.9
    assert_close(similarity([{**labeled[0], "objectness": torch.tensor([0.5, 0.1])}]), torch.tensor([0.5]))
    none = {key: value[:0] for key, value in labeled[0].items()}
    assert similarity([none]).tolist() == [0]
    plain = [{key: labeled[0][key] for key in ("boxes", "scores")}]
    assert_close(DetectionTarget(boxes[0]).similarity(plain)(plain), torch.tensor([0.8]))
    both = DetectionTarget(boxes[:2], [1, 2]).similarity(labeled * 2)
    assert_close(both(labeled * 2), torch.tensor([0.8, 0.9]))
    assert_close(both.select(torch.tensor([1, 0, 1]))(labeled * 3), torch.tensor([0.9, 0.8, 0.9]))
    missing = DetectionTarget(torch.full((4,), 20.0) + torch.tensor([0, 0, 9, 9]), required=False).settle(labeled)
    assert missing.similarity(labeled)(labeled).tolist() == [0]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_similarity_of_queries(kind: str) -> None:
    centers = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.2], [0.2, 0.2, 0.1, 0.1]])[None]
    none = [-5.0, -6.0, 4.0] if kind == "softmax" else [-5.0, -6.0, -7.0]
    logits = torch.tensor([[[3.0, 1.0, -2.0], none, none]])
    output = {"pred_boxes": centers, "logits": logits}
    [target] = DetectionTarget.of(output)
    assert int(target.labels) == 0
    shares = logits.softmax(2) if kind == "softmax" else logits.sigmoid()
    objectness = torch.ones(3) if kind == "softmax" else shares[0].amax(1)
    cosines = torch.nn.functional.cosine_similarity(shares[0], shares[0, :1], dim=1)
    expected = (torch.tensor([1.0, 0.5, 0.0]) * cosines * objectness).amax()
    assert_close(target.settle(output).similarity(output)(output), expected[None])
    assert float(expected) > 0.9


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (0, r"the target is a ClassProbability, .* pass targets=DetectionTarget\(box\)"),
        (Negative(DetectionTarget(BOX)), "the target is a Negative"),
        (DetectionTarget(BOX, part="x0"), "part is 'x0', .* leave part out"),
    ],
)
def test_d_rise_explains_whole_boxes(target: Any, message: str) -> None:
    model = detector() if target != 0 else blocks().double()
    with pytest.raises(TargetError, match=message):
        DRISE(model, masks=2)(INPUT + 0.5, target)


def test_seeds_and_copies() -> None:
    case = SMALL[0]
    maps = [RISE(case.model, masks=20, seed=seed)(case.images, case.targets) for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert float((maps[0] - maps[2]).abs().max()) > 0.1

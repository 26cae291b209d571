"""Tests on small residual networks that name gratings: objects by size, earlier layers, two objects, and mosaics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from benchmarks.ground_truth.gratings import CLASSES, SIZES, Picture, draw, lessons
from benchmarks.ground_truth.networks import Grid
from benchmarks.ground_truth.scoring import SIXTH, SLOW, Found, Plan, Subject, Test, score_all, takes_layer
from benchmarks.ground_truth.training import accuracy, train
from gradcam_kit.demo import DemoNet

_TRAINING, _STEPS, _BATCH, _IMAGES, _MOSAICS = 1000, 160, 32, 12, 4
_HELD_OUT = 1_000_000
"""First seed of test pictures. Seeds of training are smaller, and the ranges of different networks do not overlap."""


@lru_cache(maxsize=1)
def network(scale: float, seed: int) -> DemoNet:
    """Return a network of the demo's architecture, trained in seconds."""
    plan = Plan(scale=scale)
    images, labels = lessons(_TRAINING, seed)
    return train(DemoNet, images, labels, steps=plan.count(_STEPS), batch=_BATCH, seed=seed)


def sizes(plan: Plan) -> dict[str, Found]:
    """Score images with one object at the last stage, in one column for each size of the object."""
    return {size: _on(_of_size(plan, size), plan, "layer4") for size in SIZES}


def earlier(plan: Plan) -> dict[str, Found]:
    """Score the images with medium objects again, two stages earlier, where maps have twice the resolution."""
    return {"earlier layer": _on(_of_size(plan, "medium"), at_earlier_layer(plan), "layer2", plan)}


def two_objects(plan: Plan) -> dict[str, Found]:
    """Score images with objects of two classes, for which the maps should differ.

    Accuracy is the share of images whose two classes have the highest scores.
    """
    numbers = range(plan.count(_IMAGES))
    chosen = [(number % CLASSES, (number + 1 + number % (CLASSES - 1)) % CLASSES) for number in numbers]
    pictures = [draw(_seed(plan, 1) + number, ["medium"] * 2, pair) for number, pair in enumerate(chosen)]
    own = torch.stack([torch.stack(one.masks) for one in pictures])
    images, labels = torch.stack([one.image for one in pictures]), torch.tensor(chosen)
    model = network(plan.scale, plan.seed)
    other = own.flip(1).flatten(0, 1)

    def share_of_both(heatmaps: Tensor, mine: Tensor) -> Tensor:
        on_own, on_other = ((heatmaps * mask[: len(heatmaps)]).flatten(1).sum(1) for mask in (mine, other))
        return on_own / (on_own + on_other)

    found = score_all(Subject(model, "layer4", images, labels, own, parts=SIXTH), plan, share_of_both)
    with torch.inference_mode():
        best = model(images).topk(2, 1).indices.sort(1).values == labels.sort(1).values
    found.notes["accuracy"] = float(best.all(1).float().mean())
    return {"two objects": found}


def mosaics(plan: Plan) -> dict[str, Found]:
    """Score GridPG at three depths, DiPart and DiFull, on the same mosaics of 2 x 2 images of different classes.

    Accuracy is measured on the single images.
    """
    model, count = network(plan.scale, plan.seed), plan.count(_MOSAICS)
    targets = torch.stack([torch.arange(4) * (1 + 2 * (number % 4)) + number for number in range(count)]) % CLASSES
    seeds = iter(range(_seed(plan, 2), _seed(plan, 3)))
    cells = torch.stack(
        [torch.stack([draw(next(seeds), ["large"], [label]).image for label in four]) for four in targets.tolist()]
    )
    together, masks = mosaics_of(cells)
    body = nn.Sequential(model.conv1, model.bn1, model.relu, model.layer1, model.layer2, model.layer3, model.layer4)
    by_cell = targets + model.fc.out_features * torch.arange(4)
    subject = Subject(model, "layer4", together, targets, masks, parts=SIXTH)
    found = {"GridPG": score_all(subject, plan)}
    for layer in ("layer3", "layer2"):
        found[f"GridPG, {layer}"] = with_reasons(score_all(replace(subject, layer=layer), at_earlier_layer(plan)), plan)
    for name, isolated in (("DiPart", False), ("DiFull", True)):
        grid = Grid(body, model.fc, isolated=isolated).eval()
        found[name] = score_all(Subject(grid, "joint", together, by_cell, masks, parts=SIXTH), plan)
    right = accuracy(model, cells.flatten(0, 1), targets.flatten())
    for one in found.values():
        one.notes["accuracy"] = right
    return found


def mosaics_of(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Join groups of four images `(n, 4, c, h, w)`; return the mosaics, and the masks of their cells."""
    together = torch.cat([torch.cat([cells[:, 0], cells[:, 1]], 3), torch.cat([cells[:, 2], cells[:, 3]], 3)], 2)
    side = together.shape[-1] // 2
    masks = torch.zeros(len(together), 4, 2 * side, 2 * side, dtype=torch.bool)
    for cell in range(4):
        top, left = side * (cell // 2), side * (cell % 2)
        masks[:, cell, top : top + side, left : left + side] = True
    return together, masks


def _on(pictures: Sequence[Picture], plan: Plan, layer: str, whole: Plan | None = None) -> Found:
    """Score all methods of `plan` at a layer; record why methods that only `whole` has are left out."""
    model = network(plan.scale, plan.seed)
    images, labels = torch.stack([one.image for one in pictures]), torch.tensor([one.labels[0] for one in pictures])
    masks = torch.stack([one.masks[0] for one in pictures])
    found = with_reasons(score_all(Subject(model, layer, images, labels, masks, parts=SIXTH), plan), whole)
    found.notes["accuracy"] = accuracy(model, images, labels)
    return found


def _of_size(plan: Plan, size: str) -> list[Picture]:
    first = _seed(plan, 0) + 100 * list(SIZES).index(size)
    return [draw(first + number, [size], [number % CLASSES]) for number in range(plan.count(_IMAGES))]


def _seed(plan: Plan, test: int) -> int:
    """Return the first of the 1000 seeds that are reserved for the images of a test on one network."""
    return _HELD_OUT + 10 * plan.seed + 1000 * test


def _reason(method: str) -> str:
    """Return why a method is left out at earlier layers; "" if it is not."""
    if not takes_layer(method):
        return "does not depend on the layer"
    return "takes too long at this layer" if method in (*SLOW, "recipro-cam", "ablation-cam") else ""


def at_earlier_layer(plan: Plan) -> Plan:
    """Return the plan without methods that take too long at an earlier layer or whose map does not depend on it."""
    return replace(plan, methods=tuple(name for name in plan.methods if not _reason(name)))


def with_reasons(found: Found, whole: Plan | None) -> Found:
    """Record why methods of the plan `whole` are left out at an earlier layer."""
    if whole is not None:
        found.skipped |= {name: reason for name in whole.methods if (reason := _reason(name))}
    return found


_on_objects = partial(Test, has_networks=True, group="objects")
TESTS = (
    _on_objects(
        "sizes",
        "Small residual networks that name the grating on a disk among plain ones, by the size of the disk, at their "
        "last stage",
        "share of the map on the disk",
        sizes,
    ),
    _on_objects(
        "earlier layer",
        "The pictures of medium disks again, at a layer two stages earlier",
        "share of the map on the disk",
        earlier,
    ),
    _on_objects(
        "two objects",
        "Two gratings of two classes in one picture, both explained",
        "share of the explained disk in the part of the map that lies on the two disks",
        two_objects,
    ),
    _on_objects(
        "mosaics",
        "Four pictures side by side: the whole seen at once (GridPG, also one and two stages earlier), the classes of "
        "each cell computed from its own positions (DiPart), or each cell seen by itself (DiFull)",
        "share of the map in the cell of the class",
        mosaics,
    ),
)
